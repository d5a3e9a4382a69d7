"""The public names of this room, loaded on first use."""

from .extractor import FeatureExtractor as FeatureExtractor
from .files import Features as Features
