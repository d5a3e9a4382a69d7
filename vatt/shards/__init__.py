"""Tar shards: records of media, captions and metadata, local or remote.

Imports `media`, `config` and `system`. Start with `shard_set.ShardSet`; `index_file` finds a
record in a tar, `remote` fetches tars, `writer` writes them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
