"""The public names of this room, loaded on first use."""

from .view import View as View
from .view import read_view as read_view
