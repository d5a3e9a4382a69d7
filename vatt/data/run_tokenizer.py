"""The tokenizer that a run trains from its captions, where none is given to it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vatt.errors import UserError
from vatt.preprocess.tokenizer import Tokenizer
from vatt.shards.places import stamp_of
from vatt.shards.shard_set import ShardSet


def trained_tokenizer(sets: Sequence[ShardSet], vocab_size: int) -> Path:
    """The tokenizer of the sets' captions, which is made if it is not there.

    Args:
        sets: It is kept beside the shards of the first.
        vocab_size: At most so many ids.

    Raises:
        UserError: it cannot be written, or there are no captions.
    """
    path = sets[0].folder / f"tokenizer-{_fingerprint(sets, vocab_size)}.json"
    if not path.exists():
        _train(sets, vocab_size, path)
    return path


def _fingerprint(sets: Sequence[ShardSet], vocab_size: int) -> str:
    """Names the captions of shard sets by the shards' names, sizes and times of change."""
    parts = [vocab_size, *(stamp for one in sets for stamp in map(stamp_of, one.shards))]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def vocabulary_hash(tokenizer: Tokenizer) -> str:
    """Names what each id stands for, whatever wrote the file."""
    words = ["", *tokenizer.tokens[1:]]  # padding as nothing, as the checkpoints so far have it
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def _train(sets: Sequence[ShardSet], vocab_size: int, path: Path) -> None:
    captions = (caption for one in sets for caption in one.captions())
    try:
        Tokenizer.train(captions, vocab_size).save(path)
    except OSError as error:
        raise UserError(
            f"cannot keep the tokenizer beside the shards ({error}): make the folder writable, or "
            "give data.tokenizer"
        ) from error
    except UserError as error:
        raise UserError(f"no tokenizer from {sets[0].name}: {error}") from error
