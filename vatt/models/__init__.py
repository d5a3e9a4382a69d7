"""A network on disk: checkpoints, model folders, cards and exports.

Imports `network`, `preprocess` and below. Start with `checkpoint.load_model`.
"""
