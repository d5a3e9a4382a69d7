"""The public names of this room, loaded on first use."""

from .shard_set import ShardSet as ShardSet
from .writer import ShardWriter as ShardWriter
