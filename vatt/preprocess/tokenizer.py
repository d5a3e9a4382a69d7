"""Captions to ids, on the `tokenizers` library.

Two clean-ups, each kept in the `tokenizer.json` that it belongs to:

- Ours, of trained tokenizers: Unicode NFKC, lower case, all that is neither letter, digit nor white
  space removed, split at white space. Id 0 is padding, 1 an unknown word.
- The official one, of the vocabulary that the released weights were trained with: the 32 ASCII
  punctuation signs removed, A to Z to lower case, split at Unicode white space. The vocabulary file
  itself says which ids are padding and unknown words.

They agree on English in ASCII. Beyond it ours is wider on purpose: the official code leaves a
typographic apostrophe, a dash or an emoji in the caption, where it makes a known word unknown or
takes a place, and misses `École` beside `école`.

Source: the official `vatt/data/processing.py` (`get_tokenizer`, `add_text`) takes `WordTokenizer`
of `dmvr/tokenizers.py`, whose `string_tensor_to_indices` removes RE2's `[[:punct:]]` (ASCII only),
then calls `tf.strings.lower` without an encoding (ASCII only), then tensorflow_text's
`WhitespaceTokenizer` (ICU's `u_isUWhiteSpace`), and cuts or pads to 16 words.
"""

import contextlib
import itertools
import os
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

import tokenizers
import torch
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, Model, WordLevel
from tokenizers.normalizers import NFKC, Lowercase, Normalizer, Replace
from tokenizers.normalizers import Sequence as NormalizerSequence
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from vatt.errors import UserError
from vatt.preprocess.vocabulary import (
    OFFICIAL_PADDING,
    OFFICIAL_UNKNOWN,
    PADDING_ID,
    read_vocabulary,
)
from vatt.system.files import write_atomically

PADDING, UNKNOWN = "[PAD]", "[UNK]"
UNKNOWN_ID = 1
PUNCTUATION = r"[^\w\s]|_"  # removed, not replaced by a space: don't → dont
OFFICIAL_PUNCTUATION = r"[!-/:-@\[-`{-~]"  # RE2's [[:punct:]]
NUM_BYTES = 256
LEAST_PAIRS = 2  # a pair of pieces that occurs once says nothing of other captions
REPLACEMENT = "\ufffd"  # a character of which only some bytes were kept reads so


class Tokenizer:
    """A vocabulary and the clean-up that goes with it, as one `tokenizer.json`.

    Args:
        tokenizer: Of the `tokenizers` library; `[PAD]` must have id 0 and `[UNK]` id 1, or, in an
            official vocabulary, `<pad>` id 0 and `<unk>` any.

    Raises:
        UserError: other ids.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        ids = tuple(tokenizer.token_to_id(token) for token in (PADDING, UNKNOWN))
        official = tuple(
            tokenizer.token_to_id(token) for token in (OFFICIAL_PADDING, OFFICIAL_UNKNOWN)
        )
        if ids != (PADDING_ID, UNKNOWN_ID) and (official[0] != PADDING_ID or official[1] is None):
            raise UserError(
                f"a tokenizer needs {PADDING} as id {PADDING_ID} and {UNKNOWN} as id {UNKNOWN_ID}, "
                f"has {ids}"
            )
        self._tokenizer = tokenizer
        self.unknown_id = UNKNOWN_ID if official[1] is None else official[1]

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, kind: Literal["word", "bpe"] = "word"
    ) -> Self:
        """Learns a vocabulary; the same texts, in any order, give the same file.

        Args:
            texts: Captions as written.
            vocab_size: Most ids, padding and unknown included.
            kind: "word": the more frequent a word the lower its id; ties in alphabetical order.
                "bpe": byte pairs within words, from all 256 bytes up, so that no word is unknown;
                id 1 is kept free all the same. An id is then a piece of a word, and a caption is
                cut after as many pieces.

        Raises:
            UserError: no word in the texts, too few ids, or another kind.
        """
        if kind not in ("word", "bpe"):
            raise UserError(f'kind must be "word" or "bpe", got {kind!r}')
        least = UNKNOWN_ID + 2 if kind == "word" else UNKNOWN_ID + 1 + NUM_BYTES
        if vocab_size < least:
            room = "words" if kind == "word" else "every byte"
            raise UserError(
                f"vocab_size must leave room for {room}, at least {least}, got {vocab_size}"
            )
        train = _train_words if kind == "word" else _train_bpe
        return cls(train(_cleaned(texts), vocab_size))

    @classmethod
    def from_vocabulary(cls, path: str | os.PathLike[str]) -> Self:
        """The official word tokenizer, ids and clean-up, from its vocabulary `howto100m_en.txt`.

        One word per line, whose id is the number of the line from 0, or an id, a space and the
        word. `<pad>`, `<bos>`, `<eos>` and `<unk>` are among the words, with ids like any other;
        an unknown word becomes `<unk>` and keeps its place, and neither `<bos>` nor `<eos>` is
        added to captions. The file must say `<pad>` is id 0: the model masks id 0, and captions
        that are missing are filled with 0.

        Args:
            path: UTF-8 text; 65,536 words in the release, one for each of its word vectors.

        Raises:
            UserError: not such a file; names the line.

        Source: dmvr `tokenizers.py`, `WordTokenizer`; vatt `data/processing.py`
        (`add_audio_text_if_empty`, and `add_text`, both signs off) and `experiments/pretrain.py`
        (2^16 vectors). Stricter than there: ids without gaps.
        """
        ids = read_vocabulary(Path(path))
        cleanup = _sequence(
            Replace(tokenizers.Regex(OFFICIAL_PUNCTUATION), ""),
            *(Replace(letter, letter.lower()) for letter in string.ascii_uppercase),
        )
        model = WordLevel(ids, unk_token=OFFICIAL_UNKNOWN)
        return cls(_assemble(model, cleanup, WhitespaceSplit()))

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
        write_atomically(Path(path), self._tokenizer.to_str(pretty=True).encode())

    @property
    def vocab_size(self) -> int:
        """Number of ids, padding and unknown included."""
        return self._tokenizer.get_vocab_size()

    @property
    def tokens(self) -> list[str]:
        """Word or piece of each id, as the file writes it."""
        ids = self._tokenizer.get_vocab()
        return sorted(ids, key=ids.__getitem__)

    def encode(self, texts: Sequence[str], max_words: int) -> Tensor:
        """Ids of captions, cut or zero-padded to `max_words`.

        Args:
            texts: Captions as written.
            max_words: Most words of a caption, most pieces of words if this is a BPE.

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
            ids: int64 `[N, J]`; padding is left out, an unknown word reads `[UNK]` (`<unk>` in the
                official vocabulary), a character that was cut is left out.
        """
        return [
            self._decode([index for index in row if index != PADDING_ID]) for row in ids.tolist()
        ]

    def _decode(self, ids: list[int]) -> str:
        if self._tokenizer.decoder is not None:  # pieces of words
            text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
            return text.replace(REPLACEMENT, "").strip()
        tokens = (self._tokenizer.id_to_token(index) for index in ids)
        return " ".join(token if token is not None else UNKNOWN for token in tokens)


def _valid(text: str) -> str:
    """A caption without half characters, which JSON can hold and the library does not take."""
    return text.encode(errors="replace").decode()


def _cleanup() -> Normalizer:
    return _sequence(NFKC(), Lowercase(), Replace(tokenizers.Regex(PUNCTUATION), ""))


def _cleaned(texts: Iterable[str]) -> Iterator[str]:
    """Captions that hold words, clean.

    Raises:
        UserError: there is none.
    """
    normalizer = _cleanup()
    cleaned = (normalizer.normalize_str(_valid(text)) for text in texts)
    captions = (caption for caption in cleaned if caption.split())
    first = next(captions, None)
    if first is None:
        raise UserError("the captions hold no word to train a tokenizer from: check the captions")
    return itertools.chain([first], captions)


def _train_words(captions: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    counts = Counter(word for caption in captions for word in caption.split())
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    ids = {word: index for index, word in enumerate([PADDING, UNKNOWN, *ranked][:vocab_size])}
    return _assemble(WordLevel(ids, unk_token=UNKNOWN), _cleanup(), WhitespaceSplit())


def _train_bpe(captions: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    pieces = PreTokenizerSequence(
        [WhitespaceSplit(), ByteLevel(add_prefix_space=True, use_regex=False)]
    )
    learner = tokenizers.Tokenizer(BPE())
    learner.pre_tokenizer = pieces
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=LEAST_PAIRS,
        special_tokens=[PADDING, UNKNOWN],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    with _one_thread():
        learner.train_from_iterator(captions, trainer)
    # only its model: the learner itself would read "[PAD]" in a caption as padding
    trained = _assemble(learner.model, _cleanup(), pieces)
    trained.decoder = ByteLevelDecoder()
    return trained


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps the library from starting threads: after them workers cannot be forked safely."""
    variable = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(variable)
    os.environ[variable] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _sequence(*steps: Normalizer) -> Normalizer:
    return NormalizerSequence(list(steps))


def _assemble(
    model: Model, normalizer: Normalizer, pre_tokenizer: PreTokenizer
) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer
