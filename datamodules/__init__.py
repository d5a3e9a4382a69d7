"""LightningDataModules, the streaming order of samples and the synthetic demo corpus."""
