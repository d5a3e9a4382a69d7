"""Clips and captions as the network takes them.

Crops pictures, draws augmentations, splits long files into windows and turns words into ids.
Imports `shards` and below. Start with `view.read_view` and `tokenizer.Tokenizer`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
