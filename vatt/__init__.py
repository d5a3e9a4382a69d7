"""Video-audio-text transformers (VATT): train them, evaluate them, use their features.

Example:
    >>> import vatt
    >>> fx = vatt.FeatureExtractor.from_pretrained("runs/demo")  # a run, a model folder, org/name
    >>> query = fx.encode("a dog barks")  # float32 [D]
    >>> cosines = fx.encode(["dog.mp4", "bark.wav", "photo.png"]) @ query  # [3]
    >>> hits = vatt.Index("index").search("a dog barks")  # moments of many files

Features and search:
    FeatureExtractor, Features, Tokenizer, Index, IndexOptions, Hit, MtebModel
Models and their loss:
    VATT, VATTOutput, Batch, preset, as_classifier, load_model, save_model, export_model,
    ContrastiveLoss, LossConfig
Settings of models:
    VATTConfig, VideoConfig, AudioConfig, SpectrogramConfig, TextConfig, EncoderConfig, HeadConfig,
    ClassifierConfig
Media and shards:
    probe, read_clip, read_frames, read_waveform, read_view, Clip, View, ShardSet, ShardWriter
Errors:
    VattError, UserError, MediaError, ShardError, CheckpointError, ConversionError

`vatt --help` lists the commands. The names load on first use (`__init__.pyi`), so that `import
vatt` and `vatt --help` need no torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
