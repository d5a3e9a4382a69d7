"""What is asked, and in which array of an index the answer is looked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from vatt.errors import MediaError, UserError
from vatt.media.folder import MEDIA_EXTENSIONS
from vatt.preprocess.arrays import Source

if TYPE_CHECKING:
    from vatt.features.extractor import FeatureExtractor
    from vatt.preprocess.tokenizer import Tokenizer

Modality = Literal["video", "audio", "text"]
DRAWN_TEXT = ("ansi", "bintext", "xbin", "idf")  # FFmpeg draws text files as on a terminal
WEB = ("http://", "https://")
# What a query is compared with first: pictures, since sound is their index's rarer half.
SEARCHED: tuple[Modality, ...] = ("video", "audio")


@dataclass(frozen=True)
class Query:
    """What is asked.

    Args:
        modality: As what the source is encoded.
        source: Words, or media.
    """

    modality: Modality
    source: Source

    def encode(self, extractor: "FeatureExtractor", space: str) -> torch.Tensor:
        """Its vector, float32 `[D]` of unit length.

        Raises:
            UserError: it cannot be read, or holds no word that the model knows.
        """
        encode = getattr(extractor, f"encode_{self.modality}")
        if self.modality == "text":
            check_words(extractor.tokenizer, str(self.source), extractor.model.config.text)
        try:
            vector: torch.Tensor = encode(self.source, space=None if space == "none" else space)[0]
        except MediaError as error:
            raise UserError(f"the query {error}", 2) from error
        if not bool(vector.isfinite().all()) or not bool(vector.any()):
            raise UserError("the model makes no direction of this query: ask something else", 2)
        return vector


def check_words(tokenizer: "Tokenizer | None", text: str, config: Any) -> None:
    """Refuses texts of which the model knows nothing.

    Raises:
        UserError: no word, or only unknown ones.
    """
    if tokenizer is None:  # said by who encodes
        return
    ids = tokenizer.encode([text], config.max_words)[0]
    if not bool(ids.any()):
        raise UserError(f"the query {text!r} holds no word: ask for something", 2)
    if not bool(((ids != 0) & (ids != tokenizer.unknown_id)).any()):
        raise UserError(
            f"the model knows none of the words {text!r}: use words of its training captions "
            f"(its {tokenizer.vocab_size} words are in tokenizer.json)",
            2,
        )


def unknown_words(tokenizer: "Tokenizer | None", text: str) -> list[str]:
    """Words of a text that mean nothing to the model."""
    if tokenizer is None:
        return []
    words = text.split()
    ids = tokenizer.encode(words, 1)[:, 0].tolist() if words else []
    return [word for word, one in zip(words, ids, strict=True) if one == tokenizer.unknown_id]


def read_query(
    text: str,
    kind: Literal["text", "file"] | None = None,
    modality: Literal["video", "audio"] | None = None,
) -> Query:
    """What a query on the command line means: a media file, or words.

    Args:
        text: The query.
        kind: What it is; None: a file where there is one of that name, or a URL; else words.
        modality: Of a file, the half that is asked for; None: the picture where there is one.

    Raises:
        UserError: a file that is not there or no media, or a modality that it lacks.
    """
    if kind is None:
        kind = "file" if _names_file(text) else "text"
    if kind == "text":
        if modality is not None:
            raise UserError("--query-modality is for files: words have none", 2)
        return Query("text", text)
    from vatt.media.clip import probe

    try:
        info = probe(text)
    except MediaError as error:
        raise UserError(f"the query {error} (--text: search for these words)", 2) from error
    if info.video_codec in DRAWN_TEXT:
        raise UserError(f"{text} is a text file, no media (--text: search for these words)", 2)
    has = {"video": info.has_video, "audio": info.has_audio}
    if modality is not None and not has[modality]:
        raise UserError(f"{text} has no {modality}: leave --query-modality out", 2)
    return Query(modality or ("video" if info.has_video else "audio"), text)


def _names_file(text: str) -> bool:
    """Whether a query is meant as a file: it is there, or looks like one that was mistyped."""
    if text.startswith(WEB):
        return True
    try:
        if Path(text).is_file():
            return True
    except (OSError, ValueError):  # longer than names can be
        return False
    return " " not in text and Path(text).suffix[1:].lower() in MEDIA_EXTENSIONS


def choose_array(
    arrays: Mapping[str, Mapping[str, Any]],
    query_modality: Modality,
    spaces: Sequence[str],
    modality: str | None = None,
    space: str | None = None,
) -> tuple[str, str]:
    """Name and space of the array in which a query is looked for.

    Args:
        arrays: `modality` and `space` of each array of an index.
        query_modality: What is asked by.
        spaces: Those that the model can put the query into, the preferred first.
        modality: What is searched; None: pictures before sound.
        space: In which; None: the first that both share.

    Raises:
        UserError: the index lacks it, or cannot be asked by such a query; names what there is.
    """
    has = ", ".join(arrays)
    wanted = [modality] if modality is not None else SEARCHED
    in_spaces = [space] if space is not None else [*spaces, "none"]
    for what in wanted:
        for one in in_spaces:
            for name, said in arrays.items():
                if (said["modality"], said["space"]) == (what, one) and _comparable(
                    query_modality, what, one, spaces
                ):
                    return name, one
    there = {said["modality"] for said in arrays.values()}
    if modality is not None and modality not in there:
        raise UserError(f"the index has no {modality}, it has {has}: choose another --modality", 2)
    if space is not None and space not in {said["space"] for said in arrays.values()}:
        raise UserError(f"the index has no space {space}, it has {has}: choose another --space", 2)
    shared = ", ".join(spaces) or "no common space"
    raise UserError(
        f"{query_modality} cannot be compared with what was asked for: this model puts "
        f"{query_modality} into {shared}, and the index has {has}",
        2,
    )


def _comparable(query_modality: str, modality: str, space: str, spaces: Sequence[str]) -> bool:
    """Features of the backbone are comparable only within a modality."""
    return space in spaces or (space == "none" and query_modality == modality)
