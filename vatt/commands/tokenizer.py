"""The command `vatt tokenizer`: captions of shards, or a vocabulary, become a tokenizer."""

from pathlib import Path
from typing import Annotated, Literal

from vatt.config.checks import at_least
from vatt.errors import UserError


def tokenizer(
    shards: Annotated[tuple[str, ...], "*"],
    out: Annotated[Path, "-o", "--out"],
    *,
    kind: Literal["word", "bpe"] | None = None,
    vocab_size: Annotated[int | None, at_least(1)] = None,
    vocabulary: Annotated[Path | None, "FILE"] = None,
) -> int:
    """Trains a tokenizer on the captions of shards, or converts the official vocabulary to one.

    Args:
        shards: Shard folders or addresses.
        out: File to write, such as tokenizer.json.
        kind: Ids for words (word), or for pieces of words (bpe). None: word.
        vocab_size: Maximum number of ids. None: 65,536.
        vocabulary: The official vocabulary (howto100m_en.txt), instead of shards; its ids are kept.
            None: train on the shards.
    """
    from vatt.preprocess.tokenizer import Tokenizer
    from vatt.shards.shard_set import ShardSet

    if vocabulary is None:
        if not shards:
            raise UserError("give shard folders to train from, or --vocabulary", 2)
        captions = (text for folder in shards for text in ShardSet(folder).captions())
        made = Tokenizer.train(captions, vocab_size or 2**16, kind=kind or "word")
    else:
        if shards or kind or vocab_size:
            raise UserError("--vocabulary takes no shards, no --kind and no --vocab-size", 2)
        made = Tokenizer.from_vocabulary(vocabulary)
    out.parent.mkdir(parents=True, exist_ok=True)
    made.save(out)
    print(f"{out}: {made.vocab_size} ids, padding (0) and unknown ({made.unknown_id}) included")
    return 0
