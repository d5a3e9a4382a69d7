"""Lightning modules: pre-training and fine-tuning, optimisers and schedules.

Imports `network`, `models`, `evaluation` and below. Start with `pretrain.PretrainModule`.
"""
