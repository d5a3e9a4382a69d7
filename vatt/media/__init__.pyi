"""The public names of this room, loaded on first use."""

from .clip import Clip as Clip
from .clip import probe as probe
from .clip import read_clip as read_clip
from .clip import read_frames as read_frames
from .clip import read_waveform as read_waveform
