"""Feature extraction: the feature extractor, and extraction from many files.

Imports `models`, `preprocess` and below. Start with `extractor.FeatureExtractor`; `extract`
implements the command.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
