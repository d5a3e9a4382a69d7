"""Open models of others as networks that are fine-tuned contrastively, and their tokenizers.

Imports `encoders` and below. Start with `loading.load_open_model`.
"""
