"""The public names of this room, loaded on first use."""

from .geometry import AudioConfig as AudioConfig
from .geometry import SpectrogramConfig as SpectrogramConfig
from .geometry import TextConfig as TextConfig
from .geometry import VideoConfig as VideoConfig
from .model import ClassifierConfig as ClassifierConfig
from .model import EncoderConfig as EncoderConfig
from .model import HeadConfig as HeadConfig
from .model import VATTConfig as VATTConfig
from .options import IndexOptions as IndexOptions
