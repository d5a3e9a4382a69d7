"""The model as data: sizes, presets, spaces and the configurations that come with vatt.

Dataclasses without torch, so that commands can read them at once. Imports `vatt.errors` only.
Start with `model.VATTConfig`, then `presets.preset`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
