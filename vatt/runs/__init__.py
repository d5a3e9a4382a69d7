"""A training run and its folder: command line, callbacks, checkpoints and loggers.

Imports `training` and below; the only room that imports W&B. Start with `training_cli.main`.
"""
