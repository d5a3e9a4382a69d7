"""Checkpoints of the official TensorFlow implementation, read without TensorFlow.

Imports `models` and below. Start with `convert.convert`.
"""
