"""Training data: shards become batches in a global order.

The order is a function of seed and position, so a run can resume on any number of ranks and
workers. This room does not use Lightning. Imports `preprocess`, `shards` and below. Start with
`order.GlobalOrder`, then `samples.ClipSamples` and `loader`.
"""
