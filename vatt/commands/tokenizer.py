"""The command `vatt tokenizer`: captions of shards, or a vocabulary, become a tokenizer."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vatt.commands.arguments import positive

if TYPE_CHECKING:
    from vatt.preprocess.tokenizer import Tokenizer


def tokenizer(argv: Sequence[str]) -> int:
    """`vatt tokenizer SHARDS OUT` and `vatt tokenizer --vocabulary FILE OUT`."""
    parser = argparse.ArgumentParser(
        "vatt tokenizer",
        description="Trains a tokenizer from the captions of shards, or takes a vocabulary over.",
    )
    parser.add_argument("shards", type=str, nargs="*", help="shard folders or addresses")
    parser.add_argument("out", type=Path, help="tokenizer.json to write")
    parser.add_argument(
        "--kind", choices=("word", "bpe"), help="ids of words (default), or of pieces of words"
    )
    parser.add_argument("--vocab-size", type=positive, help=f"most ids, default {2**16:,}")
    parser.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FILE",
        help="the official vocabulary (howto100m_en.txt), in place of shards; keeps its ids",
    )
    arguments = parser.parse_intermixed_args(argv)  # options may stand before OUT
    if arguments.vocabulary is None:
        if not arguments.shards:
            parser.error("give shard folders to train from, or --vocabulary")
        made = _trained_tokenizer(arguments)
    else:
        if arguments.shards or arguments.kind or arguments.vocab_size:
            parser.error("--vocabulary takes no shards, no --kind and no --vocab-size")
        from vatt.preprocess.tokenizer import Tokenizer

        made = Tokenizer.from_vocabulary(arguments.vocabulary)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    made.save(arguments.out)
    print(
        f"{arguments.out}: {made.vocab_size} ids, padding (0) and unknown ({made.unknown_id}) "
        "included"
    )
    return 0


def _trained_tokenizer(arguments: argparse.Namespace) -> "Tokenizer":
    from vatt.preprocess.tokenizer import Tokenizer
    from vatt.shards.shard_set import ShardSet

    sets = [ShardSet(folder) for folder in arguments.shards]
    captions = (caption for one in sets for caption in one.captions())
    return Tokenizer.train(captions, arguments.vocab_size or 2**16, kind=arguments.kind or "word")
