"""Evaluation by the published protocols: retrieval, linear and zero-shot classification.

Imports `features`, `sets` and below. Start with `embedding_table.EmbeddingTable` and `retrieval`.
"""
