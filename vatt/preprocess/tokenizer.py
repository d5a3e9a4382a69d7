"""Captions to ids, on the `tokenizers` library.

There are two text normalisations, each stored in the `tokenizer.json` that it belongs to:

- Ours, of trained tokenizers: Unicode NFKC, lower case, all that is neither letter, digit nor white
  space removed, split at white space. Id 0 is padding, 1 an unknown word.
- The official one, of the vocabulary that the released weights were trained with: the 32 ASCII
  punctuation signs removed, A to Z to lower case, split at Unicode white space. The vocabulary file
  itself says which ids are padding and unknown words.

They agree on English in ASCII. Otherwise ours does more on purpose: the official code keeps a
typographic apostrophe, a dash or an emoji in the caption, which makes a known word unknown or
counts as a word, and it does not recognise `École` as `école`.

Source: the official `vatt/data/processing.py` (`get_tokenizer`, `add_text`) takes `WordTokenizer`
of `dmvr/tokenizers.py`, whose `string_tensor_to_indices` removes RE2's `[[:punct:]]` (ASCII only),
then calls `tf.strings.lower` without an encoding (ASCII only), then tensorflow_text's
`WhitespaceTokenizer` (ICU's `u_isUWhiteSpace`), and cuts or pads to 16 words.
"""

import itertools
import json
import os
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

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
from vatt.system.bounds import check_bytes
from vatt.system.files import write_atomically

PADDING, UNKNOWN = "[PAD]", "[UNK]"
UNKNOWN_ID = 1
PUNCTUATION = r"[^\w\s]|_"  # removed, not replaced by a space: don't → dont
OFFICIAL_PUNCTUATION = r"[!-/:-@\[-`{-~]"  # RE2's [[:punct:]]
NUM_BYTES = 256
LEAST_PAIRS = 2  # a pair of pieces that occurs once says nothing of other captions
REPLACEMENT = "\ufffd"  # a character of which only some bytes were kept reads so
MAX_FILE_BYTES = 64 << 20  # of tokenizer.json; 65,536 words have 2 MB


class Tokenizer:
    """Vocabulary with its text normalisation, stored as one `tokenizer.json`.

    Args:
        tokenizer: Tokenizer of the `tokenizers` library. `[PAD]` must have id 0 and `[UNK]` id 1;
            in an official vocabulary, `<pad>` must have id 0, and `<unk>` any id.

    Raises:
        UserError: these words have other ids.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        to_id = tokenizer.token_to_id
        ids = to_id(PADDING), to_id(UNKNOWN)
        padding, unknown = to_id(OFFICIAL_PADDING), to_id(OFFICIAL_UNKNOWN)
        if ids != (PADDING_ID, UNKNOWN_ID) and (padding != PADDING_ID or unknown is None):
            raise UserError(
                f"a tokenizer needs {PADDING} as id {PADDING_ID} and {UNKNOWN} as id {UNKNOWN_ID}, "
                f"has {ids}"
            )
        self._tokenizer = tokenizer
        self.unknown_id = UNKNOWN_ID if unknown is None else unknown

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, kind: Literal["word", "bpe"] = "word"
    ) -> Self:
        """Trains a tokenizer; the same texts, in any order, give the same file.

        Args:
            texts: Captions as written.
            vocab_size: Maximum number of ids, including padding and unknown.
            kind: "word": ids of words by falling frequency, ties in alphabetical order. "bpe": byte
                pairs within words, starting from all 256 bytes, so that no word is unknown (id 1 is
                reserved, too). An id is then a piece of a word, and captions are cut by the number
                of pieces.

        Raises:
            UserError: the texts have no words, there are too few ids, or the kind is unknown.
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
        """Official word tokenizer (ids and normalisation) from its vocabulary `howto100m_en.txt`.

        The file has one word per line, whose id is the line number from 0, or an id, a space and
        the word. `<pad>`, `<bos>`, `<eos>` and `<unk>` are among the words, with ids like any
        other. An unknown word is replaced by `<unk>`; `<bos>` and `<eos>` are not added to
        captions. `<pad>` must have id 0, because the model masks id 0, and missing captions are
        filled with 0.

        Args:
            path: Text file in UTF-8; 65,536 words in the release, one for each of its word vectors.

        Raises:
            UserError: the file is not such a vocabulary; the error names the line.

        Source: dmvr `tokenizers.py`, `WordTokenizer`; vatt `data/processing.py`
        (`add_audio_text_if_empty`, and `add_text`, both signs off) and `experiments/pretrain.py`
        (2^16 vectors). Stricter than there: ids without gaps.
        """
        ids = read_vocabulary(Path(path))
        model = WordLevel(ids, unk_token=OFFICIAL_UNKNOWN)
        return cls(_assemble(model, _official_cleanup(), WhitespaceSplit()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Loads a tokenizer that `save` wrote.

        Other steps than those of this module are refused: a regular expression from elsewhere can
        run for ever, and a chain of replacements can fill the memory.

        Raises:
            UserError: the file does not exist, is too large, or is not such a tokenizer.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"no tokenizer {path}: correct the path, or leave it out to train one from the "
                "captions"
            )
        check_bytes(path, path.stat().st_size, MAX_FILE_BYTES)
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            _check_steps(stored)
            return cls(tokenizers.Tokenizer.from_str(json.dumps(stored)))  # what was checked
        except Exception as error:  # the library raises nothing more specific
            raise UserError(f"{path} is not a tokenizer that vatt saved: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json`; an interrupted call leaves no partial file."""
        write_atomically(Path(path), self._tokenizer.to_str(pretty=True).encode())

    @property
    def vocab_size(self) -> int:
        """Number of ids, including padding and unknown."""
        return self._tokenizer.get_vocab_size()

    @property
    def tokens(self) -> list[str]:
        """Word or piece of each id, as written in the file."""
        ids = self._tokenizer.get_vocab()
        return sorted(ids, key=ids.__getitem__)

    def encode(self, texts: str | Iterable[str], max_words: int | None = None) -> Tensor:
        """Ids of captions, cut or zero-padded to `max_words`.

        Args:
            texts: Captions as written; a str is one caption.
            max_words: Maximum number of words of a caption (of pieces of words for byte pairs).
                None: as many as the longest caption has.

        Returns:
            int64 `[N, J]`, J = max_words; captions without words are all 0.

        Raises:
            TypeError: the captions are not str.

        Example:
            >>> tokenizer.encode(["a dog barks", "a cat"])  # [2, 3]
        """
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, Iterable):
            raise TypeError(f"texts are str or a list of these, got {type(texts).__name__}")
        rows = [
            self._tokenizer.encode(_valid(text), add_special_tokens=False).ids for text in texts
        ]
        if max_words is None:
            max_words = max((1, *map(len, rows)))
        ids = torch.full((len(rows), max_words), PADDING_ID, dtype=torch.int64)
        for row, words in enumerate(rows):
            kept = words[:max_words]
            ids[row, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
        return ids

    def __call__(self, texts: str | Iterable[str], max_words: int | None = None) -> Tensor:
        """Ids of captions, as `encode` gives them."""
        return self.encode(texts, max_words)

    def decode(self, ids: Tensor) -> list[str]:
        """Captions of ids, normalised as in encoding.

        Args:
            ids: int64 `[N, J]`. Padding and partly cut characters are left out; unknown words
                become `[UNK]` (`<unk>` in the official vocabulary).
        """
        rows = [[index for index in row if index != PADDING_ID] for row in ids.tolist()]
        if self._tokenizer.decoder is not None:  # pieces of words
            texts = (self._tokenizer.decode(row, skip_special_tokens=False) for row in rows)
            return [text.replace(REPLACEMENT, "").strip() for text in texts]
        words = [[self._tokenizer.id_to_token(index) for index in row] for row in rows]
        return [" ".join(UNKNOWN if one is None else one for one in row) for row in words]


def _valid(text: str) -> str:
    """Caption without half characters, which JSON can contain but the library refuses."""
    if not isinstance(text, str):
        raise TypeError(f"texts are str, got {type(text).__name__}")
    return text.encode(errors="replace").decode()


def _cleanup() -> Normalizer:
    steps = [NFKC(), Lowercase(), Replace(tokenizers.Regex(PUNCTUATION), "")]
    return NormalizerSequence(steps)


def _official_cleanup() -> Normalizer:
    letters = [Replace(letter, letter.lower()) for letter in string.ascii_uppercase]
    return NormalizerSequence([Replace(tokenizers.Regex(OFFICIAL_PUNCTUATION), ""), *letters])


def _pieces() -> PreTokenizer:
    return PreTokenizerSequence(
        [WhitespaceSplit(), ByteLevel(add_prefix_space=True, use_regex=False)]
    )


def _check_steps(stored: dict[str, Any]) -> None:
    """Refuses a tokenizer with other steps than those of this module, before they are built."""
    ours = [
        tokenizers.Tokenizer(BPE()),  # without any step
        _assemble(BPE(), _cleanup(), WhitespaceSplit()),
        _assemble(BPE(), _official_cleanup(), _pieces()),
    ]
    ours[-1].decoder = ByteLevelDecoder()
    allowed = [json.loads(one.to_str()) for one in ours]
    for name, value in stored.items():
        if name == "model":
            value, known = value["type"], ["WordLevel", "BPE"]
        else:
            known = [one.get(name) for one in allowed]
        if value not in known:
            raise UserError(
                f"its {name} {value!r:.200} is none of those that vatt runs; make a tokenizer with "
                "`vatt tokenizer`"
            )


def _cleaned(texts: Iterable[str]) -> Iterator[str]:
    """Normalised captions that contain words.

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
    from unittest.mock import patch

    learner = tokenizers.Tokenizer(BPE())
    learner.pre_tokenizer = _pieces()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=LEAST_PAIRS,
        special_tokens=[PADDING, UNKNOWN],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    # without threads of the library's own: after them workers cannot be forked safely
    with patch.dict(os.environ, {"TOKENIZERS_PARALLELISM": "false"}):
        learner.train_from_iterator(captions, trainer)
    # only its model: the learner itself would read "[PAD]" in a caption as padding
    trained = _assemble(learner.model, _cleanup(), _pieces())
    trained.decoder = ByteLevelDecoder()
    return trained


def _assemble(
    model: Model, normalizer: Normalizer, pre_tokenizer: PreTokenizer
) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer
