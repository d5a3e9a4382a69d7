"""Video-audio-text transformers (VATT): train them, evaluate them, use their features.

`__init__.pyi` lists the public names. They load on first use, so that `import vatt` and
`vatt --help` need no torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
