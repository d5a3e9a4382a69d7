"""Tokenizers of open models, behind the interface of our own."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import tokenizers
import torch
from torch import Tensor

from vatt.encoders.model_folder import VOCABULARIES
from vatt.encoders.transformers_loading import load_transformers
from vatt.errors import CheckpointError, UserError
from vatt.models.hub import HUB_ID, download, local_path
from vatt.preprocess.tokenizer import Tokenizer
from vatt.preprocess.vocabulary import PADDING_ID
from vatt.system.files import read_json, write_atomically

SHIFT = 1  # our id 0 is padding, and theirs may be a word: id i of theirs is i + 1 here
FILES = ("*.json", "*.txt", "*.model")


@dataclass(frozen=True, kw_only=True)
class TextPadding:
    """Padding that a model itself expects in its texts.

    Args:
        token_id: Id of padding, in the model's own numbers.
        is_left: Whether padding comes before the text.
        is_masked: Whether the model gets an attention mask.
        is_full: Whether all texts are padded to the model's length, as SigLIP is trained.
    """

    token_id: int = 0
    is_left: bool = False
    is_masked: bool = True
    is_full: bool = False


class PretrainedTokenizer(Tokenizer):
    """Tokenizer of an open model; its ids are moved up by one, so that id 0 is padding only.

    A model takes `ids - 1`, and `ids != 0` as the attention mask, whatever its own padding is.
    Special tokens are added as the model wants them.

    Args:
        tokenizer: Tokenizer of the `tokenizers` library, which reader processes can load without
            transformers.
        padding: Padding that the model itself expects.
        longest: Largest number of ids of a text that the tokenizer allows.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        padding: TextPadding = TextPadding(),  # frozen
        longest: int = 1 << 30,
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.padding = padding
        self.longest = longest

    @classmethod
    def from_source(cls, source: str | os.PathLike[str]) -> Self:
        """Loads the tokenizer of a model.

        Args:
            source: Folder, or `org/name` on the Hugging Face Hub.

        Raises:
            UserError: there is none, or it exists only in slow Python code.
        """
        try:
            folder = local_path(source) or download(str(source), None, FILES)
            if not any((folder / name).is_file() for name in VOCABULARIES):
                raise OSError("it has no vocabulary")  # it would be loaded all the same
            loaded = load_transformers().AutoTokenizer.from_pretrained(folder)
            kind = read_json(folder / "config.json").get("model_type", "")
        except (CheckpointError, OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"no tokenizer of transformers in {source}: {reason}") from error
        backend = getattr(loaded, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"{source} has only a slow tokenizer: save it as tokenizer.json first")
        padding = TextPadding(
            token_id=0 if loaded.pad_token_id is None else loaded.pad_token_id,
            is_left=loaded.padding_side == "left",
            is_masked="attention_mask" in loaded.model_input_names,
            is_full=kind.startswith("siglip"),
        )
        return cls(backend, padding, min(loaded.model_max_length, 1 << 30))

    @property
    def vocab_size(self) -> int:
        """Number of ids, including padding."""
        return max(self._tokenizer.get_vocab().values()) + 1 + SHIFT

    @property
    def tokens(self) -> list[str]:
        """Token of each id, as the vocabulary writes it; the first stands for padding."""
        return ["", *super().tokens]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokenizer's own `tokenizer.json`."""
        write_atomically(Path(path), self._tokenizer.to_str(pretty=True).encode())

    def encode(self, texts: str | Iterable[str], max_words: int | None = None) -> Tensor:
        """Ids of captions with the model's special tokens, cut or zero-padded to `max_words`.

        Args:
            texts: Captions; a str is one caption.
            max_words: Maximum number of ids of a caption. None: as many as the longest has.

        Returns:
            int64 `[N, J]`: the model's ids plus 1, 0 = padding; captions without a word are all 0.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if max_words is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(max_words)
        rows = [self._tokenizer.encode(text.encode(errors="replace").decode()) for text in texts]
        kept = [
            row.ids if text.strip() and 0 in row.special_tokens_mask else []
            for text, row in zip(texts, rows, strict=True)
        ]
        longest = max((1, *map(len, kept))) if max_words is None else max_words
        ids = torch.full((len(kept), longest), PADDING_ID, dtype=torch.int64)
        for row, words in enumerate(kept):
            ids[row, : len(words)] = torch.tensor(words, dtype=torch.int64) + SHIFT
        return ids

    def decode(self, ids: Tensor) -> list[str]:
        """Captions of ids `[N, J]`, without special tokens."""
        rows = [[index - SHIFT for index in row if index != PADDING_ID] for row in ids.tolist()]
        return [self._tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


def names_open_model(tokenizer: str) -> bool:
    """Whether a setting names a folder or a model of the Hub, rather than a `tokenizer.json`."""
    path = Path(tokenizer)
    is_file = path.is_file() or path.suffix == ".json"
    return not is_file and (path.is_dir() or HUB_ID.fullmatch(tokenizer) is not None)
