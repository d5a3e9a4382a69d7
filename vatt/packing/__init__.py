"""Packing of media into tar shards, and the check of shards.

Imports `shards` and below. Start with `build.build_shards`; `captions` reads caption files.
"""
