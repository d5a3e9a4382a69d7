"""Captions to ids, on the `tokenizers` library.

Clean-up as the official code does it: lower case, punctuation stripped, split at white space. Id 0
is padding, 1 an unknown word.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import tokenizers
import torch
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFKC, Lowercase, Replace
from tokenizers.normalizers import Sequence as NormalizerSequence
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

from vatt.errors import UserError
from vatt.shard_index import written_whole

PADDING, UNKNOWN = "[PAD]", "[UNK]"
PADDING_ID, UNKNOWN_ID = 0, 1
PUNCTUATION = r"[^\w\s]|_"  # removed, not replaced by a space: don't → dont


class Tokenizer:
    """A vocabulary and the clean-up that goes with it, as one `tokenizer.json`.

    Args:
        tokenizer: Of the `tokenizers` library; `[PAD]` must have id 0 and `[UNK]` id 1.

    Raises:
        ValueError: other ids.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        ids = tuple(tokenizer.token_to_id(token) for token in (PADDING, UNKNOWN))
        if ids != (PADDING_ID, UNKNOWN_ID):
            raise ValueError(
                f"a tokenizer needs {PADDING} as id {PADDING_ID} and {UNKNOWN} as id {UNKNOWN_ID}, "
                f"has {ids}"
            )
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Word level: the more frequent a word the lower its id; ties in alphabetical order.

        Args:
            texts: Captions as written.
            vocab_size: Most ids, padding and unknown included.

        Raises:
            ValueError: no word in the texts, or no room for any.
        """
        if vocab_size <= UNKNOWN_ID + 1:
            raise ValueError(
                f"vocab_size must leave room for words, at least {UNKNOWN_ID + 2}, got {vocab_size}"
            )
        normalizer = _word_level({}).normalizer
        # Not by the library's trainer: its threads make it warn in workers that are forked later.
        counts = Counter(
            word for text in texts for word in normalizer.normalize_str(_valid(text)).split()
        )
        if not counts:
            raise ValueError(
                "the captions hold no word to train a tokenizer from: check the captions"
            )
        ranked = sorted(counts, key=lambda word: (-counts[word], word))[
            : vocab_size - UNKNOWN_ID - 1
        ]
        return cls(
            _word_level({word: index for index, word in enumerate(ranked, start=UNKNOWN_ID + 1)})
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote.

        Raises:
            UserError: no such file, or not a tokenizer.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"no tokenizer {path}: correct the path, or leave it out to train one from the "
                "captions"
            )
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # the library raises nothing more specific
            raise UserError(f"{path} is not a tokenizer that vatt saved: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json`, all of it or nothing."""
        with written_whole(Path(path)) as file:
            file.write(self._tokenizer.to_str(pretty=True).encode())

    @property
    def vocab_size(self) -> int:
        """Number of ids, padding and unknown included."""
        return self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str], max_words: int) -> Tensor:
        """Ids of captions, cut or zero-padded to `max_words`.

        Returns:
            int64 `[N, J]`, J = max_words; a caption without words is all 0.
        """
        ids = torch.full((len(texts), max_words), PADDING_ID, dtype=torch.int64)
        for row, text in enumerate(texts):
            words = self._tokenizer.encode(_valid(text), add_special_tokens=False).ids[:max_words]
            ids[row, : len(words)] = torch.tensor(words, dtype=torch.int64)
        return ids

    def decode(self, ids: Tensor) -> list[str]:
        """Captions of ids, cleaned as they were encoded.

        Args:
            ids: int64 `[N, J]`; padding is left out, an unknown word reads `[UNK]`.
        """
        tokens = (
            [self._tokenizer.id_to_token(index) for index in row if index != PADDING_ID]
            for row in ids.tolist()
        )
        return [
            " ".join(token if token is not None else UNKNOWN for token in row) for row in tokens
        ]


def _valid(text: str) -> str:
    """A caption without half characters, which JSON can hold and the library does not take."""
    return text.encode(errors="replace").decode()


def _word_level(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    ids = {PADDING: PADDING_ID, UNKNOWN: UNKNOWN_ID} | vocabulary
    tokenizer = tokenizers.Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = NormalizerSequence(
        [NFKC(), Lowercase(), Replace(tokenizers.Regex(PUNCTUATION), "")]
    )
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer
