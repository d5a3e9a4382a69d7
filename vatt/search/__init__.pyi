"""The public names of this room, loaded on first use."""

from .build import IndexOptions as IndexOptions
from .index import Hit as Hit
from .index import Index as Index
