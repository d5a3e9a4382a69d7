"""Settings of a model: frozen dataclasses, filled from YAML and stored in checkpoints.

The defaults are those of the official code (``[C]`` below) at the Medium size; ``[P]`` marks values
of the paper, if they differ. Source: Akbari et al., "VATT", NeurIPS 2021, section 4.1, and
google-research/vatt/configs.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from vatt.config.checks import check_at_most, check_choices, check_positive, from_plain
from vatt.config.geometry import MODALITIES, AudioConfig, TextConfig, VideoConfig
from vatt.errors import UserError

FORMAT_VERSION = 1  # of config.json and of the dict in a checkpoint
MAX_LAYERS = 256  # of an encoder; the largest published one has 24


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Settings of a transformer encoder.

    Args:
        num_layers: Number of pre-norm blocks.
        d_model: Width of the residual stream, `D`.
        d_ff: Hidden width of the MLP.
        num_heads: Number of attention heads, `N`.
        d_kv: Width per head, `E`; num_heads · d_kv need not equal d_model.
        bias: Whether attention and MLP have biases. The spectrogram tower has none [C], and T5
            never has any.
        dropout: Rate of every dropout of the encoder ([C]: attention weights, MLP, residual
            branches, after the final norm, after adding positions, T5's input).
    """

    num_layers: int = 12
    d_model: int = 1024
    d_ff: int = 4096
    num_heads: int = 16
    d_kv: int = 64
    bias: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuses sizes and rates out of range."""
        check_positive(self, "encoder", "num_layers", most=MAX_LAYERS)
        check_positive(self, "encoder", "d_model", "d_ff", "num_heads", "d_kv")
        check_at_most("encoder.num_heads · encoder.d_kv", self.num_heads * self.d_kv)
        if not 0 <= self.dropout < 1:
            raise UserError(f"encoder.dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Settings of the heads, which project features into the common spaces.

    Args:
        kind: `fac`: a fine-grained space for video and audio, and a coarse space for video and text
            that is computed from the fine one [P, C]. `joint`: one space for all three modalities,
            with a head ReLU → Dense → BatchNorm each [C]; statistics leave out clips without the
            modality, which [C] counts as zeros.
        d_va: Width of the video-audio space.
        d_vt: Width of the video-text space.
        d_joint: Width of the joint space.
        batch_norm: `video`: only the video head has BatchNorm; audio and text heads are one Dense
            with bias [C]. `all`: BatchNorm after each linear layer of every head [P].
        audio_layers: Number of linear layers of the audio head: 1 [P, C], or 2 with a ReLU between
            them, as in the video head.
    """

    kind: Literal["fac", "joint"] = "fac"
    d_va: int = 512
    d_vt: int = 256
    d_joint: int = 512
    batch_norm: Literal["video", "all"] = "video"
    audio_layers: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        """Refuses unknown kinds and widths that are not positive."""
        check_choices(self, "head")
        check_positive(self, "head", "d_va", "d_vt", "d_joint")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Settings of a classifier on the pooled features of one modality: dropout and a Dense.

    Args:
        modality: Modality of the features; an image is a video with the frames of one patch.
        num_classes: Number of classes.
        dropout: Dropout rate of the features: 0.5 for video, 0 for audio [C].
        multi_label: Whether a clip may have several labels (AudioSet): uses sigmoid instead of
            softmax, and a bias that starts at −log(num_classes − 1).
        standardize: Whether features are standardised first: a BatchNorm without weights, as in
            linear probes. Features of files may be nearly parallel; a Dense on them learns little.
    """

    modality: Literal["video", "audio"] = "video"
    num_classes: int
    dropout: float = 0.5
    multi_label: bool = False
    standardize: bool = False

    def __post_init__(self) -> None:
        """Refuses fewer than two classes, and rates out of range."""
        check_choices(self, "classifier")
        if self.num_classes < 2 or not 0 <= self.dropout < 1:
            raise UserError(
                "classifier needs num_classes >= 2 and dropout in [0, 1), "
                f"got {self.num_classes} and {self.dropout}"
            )
        check_positive(self, "classifier", "num_classes")


@dataclass(frozen=True, kw_only=True)
class VATTConfig:
    """Settings of a whole model.

    Args:
        modalities: Modalities of the model; a fine-tuned classifier has one.
        arrangement: `agnostic`: one encoder for all three modalities; `specific`: one encoder per
            modality, T5 for text.
        video: Geometry of video clips.
        audio: Geometry of audio clips.
        text: Geometry of captions.
        encoder: The shared encoder; in the specific arrangement, the encoder of every modality for
            which none is given below.
        video_encoder: Encoder of video (specific arrangement only).
        audio_encoder: Encoder of audio (specific arrangement only).
        text_encoder: Encoder of text (specific arrangement only).
        head: Heads for the common spaces. None: no common spaces.
        classifier: Classifier on the features of one modality. None: no classifier.
        drop_token: Share of video and audio tokens dropped in training, in [0, 1).
        audio_drop_token: Share of audio tokens dropped in training. None: as `drop_token`.
        d_post: Width of the Dense(GELU) after the shared encoder (agnostic arrangement only) [C:
            1024].
        format_version: Version of the stored format.
    """

    format_version: int = FORMAT_VERSION
    modalities: tuple[str, ...] = MODALITIES
    arrangement: Literal["agnostic", "specific"] = "agnostic"
    video: VideoConfig = field(default_factory=VideoConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    video_encoder: EncoderConfig | None = None
    audio_encoder: EncoderConfig | None = None
    text_encoder: EncoderConfig | None = None
    head: HeadConfig | None = field(default_factory=HeadConfig)
    classifier: ClassifierConfig | None = None
    drop_token: float = 0.5
    audio_drop_token: float | None = None
    d_post: int = 1024

    def __post_init__(self) -> None:
        """Refuses rates out of range, and parts that are missing or would not be used."""
        _check_version(self.format_version)
        object.__setattr__(self, "modalities", tuple(self.modalities))  # YAML has lists
        check_choices(self, "model")
        check_positive(self, "model", "d_post")
        for name in ("drop_token", "audio_drop_token"):
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise UserError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        self._check_towers()

    def _check_towers(self) -> None:
        kinds = set(self.modalities)
        if not kinds or kinds - {*MODALITIES} or len(kinds) < len(self.modalities):
            raise UserError(f"modalities must be some of {MODALITIES}, got {self.modalities}")
        own = [name for name in MODALITIES if getattr(self, f"{name}_encoder") is not None]
        if self.arrangement == "agnostic" and own:
            raise UserError(
                f"the agnostic arrangement has one encoder, but {own[0]}_encoder is given: "
                "remove it or use 'specific'"
            )
        if self.arrangement == "agnostic" and self.text.tower == "linear":
            raise UserError("text.tower 'linear' needs the specific arrangement")
        if self.text_encoder is not None and self.text.tower == "linear":
            raise UserError("text.tower 'linear' has no encoder, but text_encoder is given")
        has = f"the model has {', '.join(self.modalities)}"
        if self.head is not None and ("video" not in kinds or len(kinds) < 2):
            raise UserError(f"a head needs video and another modality, {has}: set head to null")
        if self.classifier is not None and self.classifier.modality not in kinds:
            raise UserError(f"the classifier reads {self.classifier.modality}, {has}")

    @property
    def media_modalities(self) -> tuple[str, ...]:
        """Modalities that media files can contain: `video`, `audio`."""
        return tuple(name for name in self.modalities if name != "text")

    def check_modality(self, modality: str) -> None:
        """Refuses a modality that the model lacks."""
        if modality not in self.modalities:
            raise UserError(f"this model has {' and '.join(self.modalities)}, not {modality}")

    def drop_rate(self, modality: str) -> float:
        """DropToken rate of a modality in training."""
        if modality == "audio" and self.audio_drop_token is not None:
            return self.audio_drop_token
        return self.drop_token

    def tower(self, modality: str) -> EncoderConfig:
        """Encoder configuration of a modality."""
        own: EncoderConfig | None = getattr(self, f"{modality}_encoder")
        return own or self.encoder

    def feature_width(self, modality: str) -> int:
        """Width of a modality's pooled features."""
        if self.arrangement == "agnostic":
            return self.d_post
        if modality == "text" and self.text.tower == "linear":
            return self.text.d_linear
        return self.tower(modality).d_model

    def to_dict(self) -> dict[str, Any]:
        """This configuration as plain containers, for JSON and `torch.load(weights_only=True)`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VATTConfig":
        """Configuration from a dict that `to_dict` made.

        Raises:
            UserError: an unknown key, or a format version that this code does not read.
        """
        _check_version(values.get("format_version", FORMAT_VERSION))
        result: VATTConfig = from_plain(cls, values, "config")
        return result


def _check_version(version: object) -> None:
    if version != FORMAT_VERSION:
        raise UserError(
            f"config has format_version {version}, this vatt reads {FORMAT_VERSION}: update vatt"
        )
