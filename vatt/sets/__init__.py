"""Published data sets: lists of files with captions or labels.

Imports `shards` and below. Start with `retrieval` and `classification`.
"""
