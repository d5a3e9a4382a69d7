"""Training data: shards become batches in a global order.

The order is a function of seed and position, so that a run resumes on any number of ranks and
workers. No Lightning. Imports `preprocess`, `shards` and below. Start with `order.GlobalOrder`,
then `samples.ClipSamples` and `loader`.
"""
