"""Settings of models, presets, common spaces and the shipped configurations.

Dataclasses without torch, so that commands can import them quickly. Imports `vatt.errors` only.
Start with `model.VATTConfig`, then `presets.preset`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
