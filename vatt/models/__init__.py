"""Models on disk: checkpoints, model folders, model cards and exports.

Imports `network`, `preprocess` and below. Start with `checkpoint.load_model`.
"""
