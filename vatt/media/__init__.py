"""Reading and writing of media files.

Opens a source, plans which packets a clip needs, and decodes only those. Imports `config` and
`system`. Start with `clip.read_clip`, which uses `opening`, `packets`, `pictures` and `sound`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
