"""Video-audio-text transformers (VATT): train them, evaluate them, use their features.

Public names load on first use, so that `import vatt` and `vatt --help` need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from vatt.batch import Batch
    from vatt.checkpoint import load_model, save_model
    from vatt.config import (
        AudioConfig,
        ClassifierConfig,
        EncoderConfig,
        HeadConfig,
        SpectrogramConfig,
        TextConfig,
        VATTConfig,
        VideoConfig,
    )
    from vatt.errors import (
        CheckpointError,
        ConversionError,
        MediaError,
        ShardError,
        UserError,
        VattError,
    )
    from vatt.export import export_model
    from vatt.feature_files import Features
    from vatt.features import FeatureExtractor
    from vatt.losses import ContrastiveLoss, LossConfig
    from vatt.media import Clip, probe, read_clip, read_frames, read_waveform
    from vatt.model import VATT, VATTOutput
    from vatt.mteb_model import MtebModel
    from vatt.presets import as_classifier, preset
    from vatt.search import Hit, Index
    from vatt.search_build import IndexOptions
    from vatt.shards import ShardSet, ShardWriter
    from vatt.text import Tokenizer

_MODULE_OF = {
    "AudioConfig": "config",
    "Batch": "batch",
    "CheckpointError": "errors",
    "ClassifierConfig": "config",
    "Clip": "media",
    "ContrastiveLoss": "losses",
    "ConversionError": "errors",
    "EncoderConfig": "config",
    "FeatureExtractor": "features",
    "Features": "feature_files",
    "HeadConfig": "config",
    "Hit": "search",
    "Index": "search",
    "IndexOptions": "search_build",
    "LossConfig": "losses",
    "MediaError": "errors",
    "MtebModel": "mteb_model",
    "ShardError": "errors",
    "ShardSet": "shards",
    "ShardWriter": "shards",
    "SpectrogramConfig": "config",
    "TextConfig": "config",
    "Tokenizer": "text",
    "UserError": "errors",
    "VATT": "model",
    "VATTConfig": "config",
    "VATTOutput": "model",
    "VattError": "errors",
    "VideoConfig": "config",
    "as_classifier": "presets",
    "export_model": "export",
    "load_model": "checkpoint",
    "preset": "presets",
    "probe": "media",
    "read_clip": "media",
    "read_frames": "media",
    "read_waveform": "media",
    "save_model": "checkpoint",
}

__all__ = [
    "VATT",
    "AudioConfig",
    "Batch",
    "CheckpointError",
    "ClassifierConfig",
    "Clip",
    "ContrastiveLoss",
    "ConversionError",
    "EncoderConfig",
    "FeatureExtractor",
    "Features",
    "HeadConfig",
    "Hit",
    "Index",
    "IndexOptions",
    "LossConfig",
    "MediaError",
    "MtebModel",
    "ShardError",
    "ShardSet",
    "ShardWriter",
    "SpectrogramConfig",
    "TextConfig",
    "Tokenizer",
    "UserError",
    "VATTConfig",
    "VATTOutput",
    "VattError",
    "VideoConfig",
    "as_classifier",
    "export_model",
    "load_model",
    "preset",
    "probe",
    "read_clip",
    "read_frames",
    "read_waveform",
    "save_model",
]


def __getattr__(name: str) -> Any:
    """Imports the module of a public name when the name is first asked for (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'vatt' has no attribute {name!r}")
    value = getattr(import_module(f"vatt.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next access is an ordinary look-up
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
