"""LightningDataModules of pre-training and fine-tuning, which users can replace."""
