"""Files become vectors: the feature extractor and bulk extraction.

Imports `models`, `preprocess` and below. Start with `extractor.FeatureExtractor`; `extract` is
the command's work.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
