"""Tokenizer that a run trains on its captions, if none is given."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vatt.errors import UserError
from vatt.preprocess.tokenizer import Tokenizer
from vatt.shards.places import stamp_of
from vatt.shards.shard_set import ShardSet


def trained_tokenizer(
    sets: Sequence[ShardSet], vocab_size: int, max_seconds: float | None = None
) -> Path:
    """Path of a tokenizer for the captions of the sets; trains it if it does not exist.

    Args:
        sets: Shard sets; the tokenizer is stored beside the shards of the first.
        vocab_size: Maximum number of ids.
        max_seconds: Time for reading captions; other processes and their GPUs may wait for it.
            None: no limit.

    Raises:
        UserError: the file cannot be written, there are no captions, or the time is over.
    """
    # names the captions by the shards' names, sizes and times of change
    parts = [vocab_size, *(stamp for one in sets for stamp in map(stamp_of, one.shards))]
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    path = sets[0].folder / f"tokenizer-{digest}.json"
    if path.exists():
        return path
    captions = (caption for one in sets for caption in one.captions())
    try:
        Tokenizer.train(_in_time(captions, max_seconds), vocab_size).save(path)
    except OSError as error:
        raise UserError(
            f"cannot keep the tokenizer beside the shards ({error}): make the folder writable, or "
            "give data.tokenizer"
        ) from error
    except UserError as error:
        raise UserError(
            f"no tokenizer from {sets[0].name}: {error} (without any captions, add "
            "--config overlay_video_audio)"
        ) from error
    return path


def _in_time(captions: Iterator[str], max_seconds: float | None) -> Iterator[str]:
    end = time.monotonic() + (math.inf if max_seconds is None else max_seconds)
    for number, caption in enumerate(captions):
        if number % 1000 == 0 and time.monotonic() >= end:
            raise UserError(
                f"it takes more than {max_seconds:g} seconds, while other processes wait: train it "
                "once before (vatt tokenizer SHARDS tokenizer.json), and give data.tokenizer"
            )
        yield caption


def vocabulary_hash(tokenizer: Tokenizer) -> str:
    """Hash of the words of all ids, which does not depend on the format of the file."""
    words = ["", *tokenizer.tokens[1:]]  # padding as nothing, as the checkpoints so far have it
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]
