"""The model as data: frozen dataclasses that a YAML file fills and a checkpoint carries.

Defaults are those of the official code (``[C]`` below) at the Medium size; ``[P]`` marks what the
paper says where it differs.
Source: Akbari et al., "VATT", NeurIPS 2021, Tables 7 and 10, section 4.1, and
google-research/vatt/configs.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

MODALITIES = ("video", "audio", "text")
FORMAT_VERSION = 1  # of config.json and of the dict in a checkpoint


def check_choices(config: Any, where: str) -> None:
    """Refuses a value that its field's `Literal` does not list; Python itself checks none."""
    hints = get_type_hints(type(config))
    for name, hint in hints.items():
        value = getattr(config, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            choices = ", ".join(map(repr, get_args(hint)))
            raise ValueError(f"{where}.{name} must be one of {choices}, got {value!r}")


def check_positive(config: Any, where: str, *names: str) -> None:
    """Refuses sizes and rates that are not above zero."""
    for name in names:
        if getattr(config, name) <= 0:
            raise ValueError(f"{where}.{name} must be positive, got {getattr(config, name)}")


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Geometry of an RGB video clip, `[num_frames, image_size, image_size, 3]`.

    Args:
        num_frames: Frames per clip, `T`.
        frame_rate: Frames per second at which a clip is sampled; 32 frames at 10 fps = 3.2 s.
        image_size: Height and width in pixels.
        patch_size: Frames, rows and columns of one token.
        input_scale: Factor on the pixels in [-1, 1] before patching, 1 [P, C]. Small models that
            train for minutes learn faster when tokens are as large as their positions.
    """

    num_frames: int = 32
    frame_rate: float = 10.0
    image_size: int = 224
    patch_size: tuple[int, int, int] = (4, 16, 16)
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuses a grid that the patches do not fill."""
        check_positive(self, "video", "num_frames", "frame_rate", "image_size")
        sizes = (self.num_frames, self.image_size, self.image_size)
        for axis, size, patch in zip(
            ("num_frames", "image_size", "image_size"), sizes, self.patch_size, strict=True
        ):
            if patch <= 0 or size % patch:
                raise ValueError(
                    f"video.{axis} ({size}) must be a multiple of its patch size, "
                    f"got patch_size={self.patch_size}"
                )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        frames, height, width = self.patch_size
        return self.num_frames // frames, self.image_size // height, self.image_size // width

    @property
    def num_tokens(self) -> int:
        """Tokens of a whole clip, before DropToken."""
        frames, height, width = self.grid
        return frames * height * width

    @property
    def duration_seconds(self) -> float:
        """Time that a clip spans."""
        return self.num_frames / self.frame_rate


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """Geometry of a mono waveform in [-1, 1].

    Args:
        sample_rate: Hz.
        num_samples: Samples per clip, `S`; 153,600 at 48 kHz = 3.2 s.
        patch_size: Samples of one token.
        input_scale: Factor on the waveform before patching, 1 [P, C]; as for video.
    """

    sample_rate: int = 48_000
    num_samples: int = 153_600
    patch_size: int = 128
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuses a length that the patches do not fill."""
        check_positive(self, "audio", "sample_rate", "num_samples")
        if self.patch_size <= 0 or self.num_samples % self.patch_size:
            raise ValueError(
                f"audio.num_samples ({self.num_samples}) must be a multiple of "
                f"audio.patch_size ({self.patch_size})"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of a whole clip, before DropToken."""
        return self.num_samples // self.patch_size

    @property
    def duration_seconds(self) -> float:
        """Time that a clip spans."""
        return self.num_samples / self.sample_rate


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Geometry of a caption, and what is particular to the T5 text tower.

    Args:
        vocab_size: Number of ids, padding included; id 0 is padding.
        max_words: Words kept of a caption, `J`.
        d_embedding: Width of the word vectors. The agnostic arrangement projects it to `d_model`
            with a GELU, as the T5 tower does.
        train_embedding: Whether word vectors learn. The release keeps them frozen; without given
            vectors they must learn.
        relative_buckets: Buckets of the T5 relative attention bias.
        relative_max_distance: Distance from which all words share the last bucket.
    """

    vocab_size: int = 65_536
    max_words: int = 16
    d_embedding: int = 300
    train_embedding: bool = True
    relative_buckets: int = 32
    relative_max_distance: int = 64

    def __post_init__(self) -> None:
        """Refuses sizes that make no tower."""
        check_positive(self, "text", "max_words", "d_embedding")
        if self.vocab_size < 2:  # padding and a word
            raise ValueError(f"text.vocab_size must be at least 2, got {self.vocab_size}")
        if self.relative_buckets < 4 or self.relative_max_distance <= self.relative_buckets // 4:
            raise ValueError(
                "text needs relative_buckets >= 4 and relative_max_distance > a quarter of them, "
                f"got {self.relative_buckets} and {self.relative_max_distance}"
            )


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """One transformer encoder.

    Args:
        num_layers: Pre-norm blocks.
        d_model: Width of the residual stream, `D`.
        d_ff: Width inside the MLP.
        num_heads: Attention heads, `N`.
        d_kv: Width per head, `E`; num_heads · d_kv need not equal d_model.
        dropout: Rate of every dropout of the encoder ([C]: attention weights, MLP, residual
            branches, after the final norm and after adding positions).
    """

    num_layers: int = 12
    d_model: int = 1024
    d_ff: int = 4096
    num_heads: int = 16
    d_kv: int = 64
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuses sizes that make no network."""
        check_positive(self, "encoder", "num_layers", "d_model", "d_ff", "num_heads", "d_kv")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"encoder.dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The fine and coarse common spaces (FAC).

    Args:
        d_va: Width of the video-audio space.
        d_vt: Width of the video-text space.
        batch_norm: `video`: only the video head normalises, audio and text heads are one Dense with
            bias [C]; `all`: BatchNorm after each linear layer of every head [P].
        audio_layers: Linear layers of the audio head, 1 [P, C] or 2 (with ReLU between, as the
            video head has).
    """

    d_va: int = 512
    d_vt: int = 256
    batch_norm: Literal["video", "all"] = "video"
    audio_layers: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        """Refuses spaces without width and arrangements that there are not."""
        check_choices(self, "head")
        check_positive(self, "head", "d_va", "d_vt")


@dataclass(frozen=True, kw_only=True)
class VATTConfig:
    """A whole pre-training model.

    Args:
        arrangement: `agnostic`: one encoder for the three modalities; `specific`: one each, text by
            T5.
        video: Geometry of the video clip.
        audio: Geometry of the waveform.
        text: Geometry of the caption.
        encoder: The shared encoder; in the specific arrangement the one of each tower that has none
            of its own below.
        video_encoder: Own encoder of the video tower (specific arrangement only).
        audio_encoder: Own encoder of the audio tower (specific arrangement only).
        text_encoder: Own encoder of the text tower (specific arrangement only).
        head: The common spaces.
        drop_token: Share of video and audio tokens dropped in training, in [0, 1).
        audio_drop_token: Share of audio tokens, where it is another one; None: as `drop_token`.
        d_post: Width of the Dense(GELU) after the shared encoder (agnostic arrangement only) [C:
            1024].
    """

    arrangement: Literal["agnostic", "specific"] = "agnostic"
    video: VideoConfig = field(default_factory=VideoConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    video_encoder: EncoderConfig | None = None
    audio_encoder: EncoderConfig | None = None
    text_encoder: EncoderConfig | None = None
    head: HeadConfig = field(default_factory=HeadConfig)
    drop_token: float = 0.5
    audio_drop_token: float | None = None
    d_post: int = 1024

    def __post_init__(self) -> None:
        """Refuses rates out of range and tower encoders that the arrangement would not use."""
        check_choices(self, "model")
        check_positive(self, "model", "d_post")
        for name in ("drop_token", "audio_drop_token"):
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        own = [name for name in MODALITIES if getattr(self, f"{name}_encoder") is not None]
        if self.arrangement == "agnostic" and own:
            raise ValueError(
                f"the agnostic arrangement has one encoder, but {own[0]}_encoder is given: "
                "remove it or use 'specific'"
            )

    def tower(self, modality: str) -> EncoderConfig:
        """The encoder configuration that a modality goes through."""
        own: EncoderConfig | None = getattr(self, f"{modality}_encoder")
        return own or self.encoder

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, for JSON and checkpoints that load with `weights_only=True`."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VATTConfig":
        """Inverse of `to_dict`.

        Raises:
            ValueError: an unknown key, or a format version that this code does not read.
        """
        values = dict(values)
        version = values.pop("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"config has format_version {version}, this vatt reads {FORMAT_VERSION}: "
                "update vatt"
            )
        return _build(cls, values, "config")


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    """Fills a dataclass from nested dicts, refusing keys that it does not have."""
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}; known are {sorted(hints)}")
    arguments = {}
    for name, value in values.items():
        kinds = get_args(hints[name]) or (hints[name],)
        nested: Any = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if nested is not None and isinstance(value, dict):
            value = _build(nested, value, f"{where}.{name}")
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)


# Encoder sizes, paper Table 7. Small is the T5 text tower.
SMALL = EncoderConfig(num_layers=6, d_model=512, d_ff=2048, num_heads=8)
BASE = EncoderConfig(num_layers=12, d_model=768, d_ff=3072, num_heads=12)
MEDIUM = EncoderConfig(num_layers=12, d_model=1024, d_ff=4096, num_heads=16)
LARGE = EncoderConfig(num_layers=24, d_model=1024, d_ff=4096, num_heads=16)
TINY = EncoderConfig(num_layers=2, d_model=32, d_ff=64, num_heads=2, d_kv=16, dropout=0.0)


def _agnostic(encoder: EncoderConfig) -> VATTConfig:
    return VATTConfig(arrangement="agnostic", encoder=encoder)


def _specific(video: EncoderConfig) -> VATTConfig:
    return VATTConfig(
        arrangement="specific", video_encoder=video, audio_encoder=BASE, text_encoder=SMALL
    )


_PRESETS = {
    "ma-base": _agnostic(BASE),
    "ma-medium": _agnostic(MEDIUM),
    "ma-large": _agnostic(LARGE),
    "bbs": _specific(BASE),
    "mbs": _specific(MEDIUM),
    "lbs": _specific(LARGE),
    "tiny": VATTConfig(
        video=VideoConfig(num_frames=4, frame_rate=5.0, image_size=32, patch_size=(2, 8, 8)),
        audio=AudioConfig(
            sample_rate=8_000, num_samples=6_400, patch_size=128
        ),  # 0.8 s, as the video
        text=TextConfig(vocab_size=256, d_embedding=16),
        encoder=TINY,
        head=HeadConfig(d_va=24, d_vt=12),
        d_post=32,
    ),
}


def preset(name: str) -> VATTConfig:
    """A published model's configuration by name.

    Raises:
        ValueError: no such preset.
    """
    if name not in _PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(_PRESETS)}")
    return _PRESETS[name]
