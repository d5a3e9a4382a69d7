"""The public names of this room, loaded on first use."""

from .index import Hit as Hit
from .index import Index as Index
