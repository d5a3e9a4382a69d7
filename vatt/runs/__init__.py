"""A training run and its folder: command line, callbacks, checkpoints and loggers.

Imports `training` and below; the only room that imports W&B. Start with `training_cli.main`.
"""

from vatt.encoders.torchvision_loading import load_torchvision

load_torchvision()  # Lightning's packages import it, and would stop at a build for another torch
