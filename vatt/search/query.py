"""Queries: reading, encoding, and the choice of the array to search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vatt.config.spaces import MediaModality
from vatt.errors import MediaError, UserError
from vatt.media.folder import names_media

if TYPE_CHECKING:  # torch and PyAV, which the search in an index does not need
    from torch import Tensor

    from vatt.features.extractor import FeatureExtractor
    from vatt.preprocess.arrays import Source
    from vatt.preprocess.tokenizer import Tokenizer

Modality = Literal["video", "audio", "video_audio", "text"]
DRAWN_TEXT = ("ansi", "bintext", "xbin", "idf")  # FFmpeg draws text files as on a terminal
# pictures first: fewer files have sound
SEARCHED: tuple[Modality, ...] = ("video", "audio", "video_audio")


@dataclass(frozen=True)
class Query:
    """Query: a text, or media whose picture or sound is used.

    Args:
        modality: Modality by which the source is encoded.
        source: Text or media.
    """

    modality: Modality
    source: "Source"

    def encode(self, extractor: "FeatureExtractor", space: str) -> "Tensor":
        """Encodes the query as a unit vector, float32 `[D]`.

        Raises:
            UserError: the media cannot be read, or the model knows none of the words.
        """
        encode = getattr(extractor, f"encode_{self.modality}")
        if self.modality == "text":
            check_words(extractor.tokenizer, str(self.source), extractor.encoder.max_tokens)
        try:
            vector: Tensor = encode(self.source, space=None if space == "none" else space)[0]
        except MediaError as error:
            raise UserError(f"the query {error}", 2) from error
        if not bool(vector.isfinite().all()) or not bool(vector.any()):
            raise UserError("the model makes no direction of this query: ask something else", 2)
        return vector


def check_words(tokenizer: "Tokenizer | None", text: str, max_words: int) -> None:
    """Refuses texts without any word that the model knows.

    Raises:
        UserError: the text has no words, or only unknown ones.
    """
    if tokenizer is None:  # encoding refuses it
        return
    ids = tokenizer.encode([text], max_words)[0]
    if not bool(ids.any()):
        raise UserError(f"the query {text!r} holds no word: ask for something", 2)
    if not bool(((ids != 0) & (ids != tokenizer.unknown_id)).any()):
        raise UserError(
            f"the model knows none of the words {text!r}: use words of its training captions "
            f"(its {tokenizer.vocab_size} words are in tokenizer.json)",
            2,
        )


def unknown_words(tokenizer: "Tokenizer | None", text: str) -> list[str]:
    """Words of a text that the model does not know."""
    words = text.split()
    if tokenizer is None or not words:
        return []
    ids = tokenizer.encode(words, 1)[:, 0].tolist()
    return [word for word, one in zip(words, ids, strict=True) if one == tokenizer.unknown_id]


def read_query(
    text: str,
    kind: Literal["text", "file"] | None = None,
    modality: MediaModality | None = None,
) -> Query:
    """Reads a query of the command line: a media file or a text.

    Args:
        text: The query.
        kind: Whether the query is a text or a file. None: a file if a file has that name or it is a
            URL, else a text.
        modality: Whether to use a file's picture or sound. None: the picture if it has one.

    Raises:
        UserError: the file is missing, is not a media file, or lacks the modality.
    """
    if kind is None:
        kind = "file" if names_media(text) else "text"
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
    has["video_audio"] = all(has.values())
    if modality is not None and not has[modality]:
        raise UserError(f"{text} has no {modality}: leave --query-modality out", 2)
    return Query(modality or ("video" if info.has_video else "audio"), text)


def choose_array(
    arrays: Mapping[str, Mapping[str, Any]],
    query_modality: Modality,
    spaces: Sequence[str],
    modality: str | None = None,
    space: str | None = None,
) -> tuple[str, str]:
    """Chooses the array to search: its name and its space.

    Args:
        arrays: `modality` and `space` of each array of an index.
        query_modality: Modality of the query.
        spaces: Spaces of the query's vectors, the preferred one first.
        modality: Modality to search; None: video before audio.
        space: Space to search in; None: the first that both share.

    Raises:
        UserError: the index lacks such an array, or the query cannot be compared with it.
    """
    for searched in SEARCHED if modality is None else [modality]:
        for shared in [*spaces, "none"] if space is None else [space]:
            # features of the backbone are comparable only within a modality
            comparable = shared in spaces or (shared == "none" and query_modality == searched)
            for name, array in arrays.items():
                if comparable and (array["modality"], array["space"]) == (searched, shared):
                    return name, shared
    has = ", ".join(arrays)
    if modality is not None and modality not in {array["modality"] for array in arrays.values()}:
        raise UserError(f"the index has no {modality}, it has {has}: choose another --modality", 2)
    if space is not None and space not in {array["space"] for array in arrays.values()}:
        raise UserError(f"the index has no space {space}, it has {has}: choose another --space", 2)
    raise UserError(
        f"{query_modality} cannot be compared with what was asked for: this model puts "
        f"{query_modality} into {', '.join(spaces) or 'no common space'}, and the index has {has}",
        2,
    )
