"""Search in extracted features: the index, and the page of hits.

Imports `features` and below. Start with `index.Index`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
