"""Lightning modules: pre-training and fine-tuning, optimisers and schedules.

Imports `network`, `models`, `evaluation` and below. Start with `pretrain.PretrainModule`.
"""

from vatt.encoders.torchvision_loading import load_torchvision

load_torchvision()  # Lightning's packages import it, and would stop at a build for another torch
