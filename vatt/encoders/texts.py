"""Texts for tokenizers of other libraries: their number of tokens, and limits of models."""

import sys
from typing import Any

NO_LIMIT = 1 << 20  # tokenizers state such numbers if they know no limit


def count_tokens(tokenizer: Any, text: str, prompt: str = "") -> int:
    """Number of tokens of a text with those that a tokenizer adds; 0 if it has none of its own.

    Args:
        tokenizer: Tokenizer of transformers, or one with `encode(text)`.
        text: The text.
        prompt: Words that are put before each text.
    """
    if not text.strip():
        return 0
    if not hasattr(tokenizer, "num_special_tokens_to_add"):
        return len(tokenizer.encode(text)) if hasattr(tokenizer, "encode") else len(text.split())
    options = {"add_special_tokens": False, "truncation": False, "verbose": False}
    if not tokenizer(text, **options)["input_ids"]:
        return 0
    ids = tokenizer(prompt + text, **options)["input_ids"]
    return len(ids) + int(tokenizer.num_special_tokens_to_add())


def most_tokens(*limits: int | None) -> int:
    """The smallest of the limits that are known; `sys.maxsize` if none is."""
    return min((one for one in limits if one is not None and one < NO_LIMIT), default=sys.maxsize)
