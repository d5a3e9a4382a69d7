"""The public names of this room, loaded on first use."""

from .hits import Hit as Hit
from .index import Index as Index
