"""Vectors become answers: an index of extracted features and the page of results.

Imports `features` and below. Start with `index.Index`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
