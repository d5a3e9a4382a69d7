"""A folder of media becomes tar shards, which are checked.

Imports `shards` and below. Start with `build.build_shards`; `captions` reads caption files.
"""
