"""The public names of vatt, loaded on first use."""

from .batch import Batch as Batch
from .config.geometry import AudioConfig as AudioConfig
from .config.geometry import SpectrogramConfig as SpectrogramConfig
from .config.geometry import TextConfig as TextConfig
from .config.geometry import VideoConfig as VideoConfig
from .config.model import ClassifierConfig as ClassifierConfig
from .config.model import EncoderConfig as EncoderConfig
from .config.model import HeadConfig as HeadConfig
from .config.model import VATTConfig as VATTConfig
from .config.options import IndexOptions as IndexOptions
from .config.presets import as_classifier as as_classifier
from .config.presets import preset as preset
from .errors import CheckpointError as CheckpointError
from .errors import ConversionError as ConversionError
from .errors import MediaError as MediaError
from .errors import ShardError as ShardError
from .errors import UserError as UserError
from .errors import VattError as VattError
from .evaluation.mteb_model import MtebModel as MtebModel
from .features.extractor import FeatureExtractor as FeatureExtractor
from .features.files import Features as Features
from .media.clip import Clip as Clip
from .media.clip import probe as probe
from .media.clip import read_clip as read_clip
from .media.clip import read_frames as read_frames
from .media.clip import read_waveform as read_waveform
from .models.checkpoint import load_model as load_model
from .models.checkpoint import save_model as save_model
from .models.export import export_model as export_model
from .models.pretrained import VATT as VATT
from .network.contrastive_loss import ContrastiveLoss as ContrastiveLoss
from .network.contrastive_loss import LossConfig as LossConfig
from .network.model import VATTOutput as VATTOutput
from .preprocess.tokenizer import Tokenizer as Tokenizer
from .preprocess.view import View as View
from .preprocess.view import read_view as read_view
from .search.hits import Hit as Hit
from .search.index import Index as Index
from .shards.shard_set import ShardSet as ShardSet
from .shards.writer import ShardWriter as ShardWriter

__version__: str
