"""The model as data: frozen dataclasses that a YAML file fills and a checkpoint carries.

Defaults are those of the official code (``[C]`` below) at the Medium size; ``[P]`` marks what the
paper says where it differs.
Source: Akbari et al., "VATT", NeurIPS 2021, section 4.1, and google-research/vatt/configs.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from vatt.config_checks import check_choices, check_positive, check_sizes, from_plain
from vatt.errors import UserError

MODALITIES = ("video", "audio", "text")
FORMAT_VERSION = 1  # of config.json and of the dict in a checkpoint


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Geometry of an RGB video clip, `[num_frames, image_size, image_size, 3]`.

    Args:
        num_frames: Frames per clip, `T`.
        frame_rate: Frames per second at which a clip is sampled; 32 frames at 10 fps = 3.2 s.
        image_size: Height and width in pixels.
        patch_size: Frames, rows and columns of one token.
        position_grid: Learned positions along time, height and width; None: one for each token of
            this geometry. Where a clip has another grid, they are interpolated.
        input_scale: Factor on the pixels in [-1, 1] before patching, 1 [P, C]. Small models that
            train for minutes learn faster when tokens are as large as their positions.
    """

    num_frames: int = 32
    frame_rate: float = 10.0
    image_size: int = 224
    patch_size: tuple[int, int, int] = (4, 16, 16)
    position_grid: tuple[int, int, int] | None = None
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuses a grid that the patches do not fill."""
        check_positive(self, "video", "num_frames", "frame_rate", "image_size")
        check_sizes("video.patch_size", self.patch_size, 3)
        check_sizes("video.position_grid", self.position_grid, 3)
        for axis, patches in (("num_frames", self.patch_size[:1]), ("image_size", self.patch_size)):
            if any(getattr(self, axis) % patch for patch in patches[-2:]):
                raise UserError(
                    f"video.{axis} ({getattr(self, axis)}) must be a multiple of its patch size, "
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
class SpectrogramConfig:
    """Log-mel spectrogram of a waveform, `[M, F]` in [0, 1] (`vatt.audio.LogMel`).

    Args:
        window_samples: Samples under one Hann window; 2048 at 48 kHz = 43 ms.
        hop_samples: Samples from one window to the next.
        num_mels: Mel bins, `F`.
        min_hertz: Lower edge of the lowest mel bin.
        max_hertz: Upper edge of the highest mel bin.
        patch_size: Windows and mel bins of one token; what fills no patch is left out.
        transposed_positions: Numbers the tokens mel bin by mel bin when their positions are looked
            up, though they are stored window by window: a fault of the official code that its
            released weights need [C].
    """

    window_samples: int = 2048
    hop_samples: int = 1024
    num_mels: int = 80
    min_hertz: float = 80.0
    max_hertz: float = 7600.0
    patch_size: tuple[int, int] = (16, 5)
    transposed_positions: bool = False

    def __post_init__(self) -> None:
        """Refuses sizes that make no spectrogram."""
        check_positive(self, "audio.spectrogram", "window_samples", "hop_samples", "num_mels")
        check_sizes("audio.spectrogram.patch_size", self.patch_size, 2)
        if self.patch_size[1] > self.num_mels:
            raise UserError(
                f"audio.spectrogram.patch_size must fit {self.num_mels} mel bins, "
                f"got {self.patch_size}"
            )
        if not 0 <= self.min_hertz < self.max_hertz:
            raise UserError(
                "audio.spectrogram needs 0 <= min_hertz < max_hertz, "
                f"got {self.min_hertz} and {self.max_hertz}"
            )


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """Geometry of a mono waveform in [-1, 1].

    Args:
        sample_rate: Hz.
        num_samples: Samples per clip, `S`; 153,600 at 48 kHz = 3.2 s.
        patch_size: Samples of one token, where tokens are pieces of the waveform.
        spectrogram: Makes tokens of a log-mel spectrogram instead. None: of the waveform.
        position_grid: Learned positions, (tokens,) for a waveform, (time, mel) for a spectrogram;
            None: one for each token of this geometry. Otherwise they are interpolated.
        input_scale: Factor on the waveform before patching, 1 [P, C]; as for video.
    """

    sample_rate: int = 48_000
    num_samples: int = 153_600
    patch_size: int = 128
    spectrogram: SpectrogramConfig | None = None
    position_grid: tuple[int, ...] | None = None
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuses a length that the patches do not fill."""
        check_positive(self, "audio", "sample_rate", "num_samples", "patch_size")
        check_sizes("audio.position_grid", self.position_grid, len(self.grid))
        if self.spectrogram is not None and self.spectrogram.max_hertz > self.sample_rate / 2:
            raise UserError(
                f"audio.spectrogram.max_hertz ({self.spectrogram.max_hertz}) must not be above "
                f"half of audio.sample_rate ({self.sample_rate})"
            )
        if self.spectrogram is None and self.num_samples % self.patch_size:
            sizes = f"audio.num_samples ({self.num_samples})"
            raise UserError(f"{sizes} must be a multiple of audio.patch_size ({self.patch_size})")
        if 0 in self.grid:
            raise UserError(f"audio.num_samples ({self.num_samples}) do not fill one patch")

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along time or, for a spectrogram, along time and mel bins."""
        mel = self.spectrogram
        if mel is None:
            return (self.num_samples // self.patch_size,)
        windows = -(-self.num_samples // mel.hop_samples)
        return windows // mel.patch_size[0], mel.num_mels // mel.patch_size[1]

    @property
    def num_tokens(self) -> int:
        """Tokens of a whole clip, before DropToken."""
        return math.prod(self.grid)

    @property
    def duration_seconds(self) -> float:
        """Time that a clip spans."""
        return self.num_samples / self.sample_rate


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Geometry of a caption, and what is particular to a text tower of its own.

    Args:
        tower: Text tower of the specific arrangement: `t5`, or `linear`: relu(Dense) of each word
            vector, maximum over all words, padding included.
        vocab_size: Number of ids, padding included; id 0 is padding.
        max_words: Words kept of a caption, `J`.
        d_embedding: Width of the word vectors. The agnostic arrangement projects it to `d_model`
            with a GELU, as the T5 tower does.
        train_embedding: Whether word vectors learn. The release keeps them frozen; without given
            vectors they must learn.
        relative_buckets: Buckets of the T5 relative attention bias.
        relative_max_distance: Distance from which all words share the last bucket.
        d_linear: Width of the linear tower.
    """

    tower: Literal["t5", "linear"] = "t5"
    vocab_size: int = 65_536
    max_words: int = 16
    d_embedding: int = 300
    train_embedding: bool = True
    relative_buckets: int = 32
    relative_max_distance: int = 64
    d_linear: int = 2048

    def __post_init__(self) -> None:
        """Refuses sizes that make no tower."""
        check_choices(self, "text")
        check_positive(self, "text", "max_words", "d_embedding", "d_linear")
        if self.vocab_size < 2:  # padding and a word
            raise UserError(f"text.vocab_size must be at least 2, got {self.vocab_size}")
        if self.relative_buckets < 4 or self.relative_max_distance <= self.relative_buckets // 4:
            raise UserError(
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
        bias: Whether attention and MLP have biases; the spectrogram tower's have none [C], T5's
            never.
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
        """Refuses sizes that make no network."""
        check_positive(self, "encoder", "num_layers", "d_model", "d_ff", "num_heads", "d_kv")
        if not 0 <= self.dropout < 1:
            raise UserError(f"encoder.dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The common spaces.

    Args:
        kind: `fac`: a fine space for video and audio, and below it a coarse one for video and text
            [P, C]; `joint`: one space for the three, ReLU → Dense → BatchNorm each [C], whose
            statistics leave out clips without the modality; [C] takes them in as zeros.
        d_va: Width of the video-audio space.
        d_vt: Width of the video-text space.
        d_joint: Width of the joint space.
        batch_norm: `video`: only the video head normalises, audio and text heads are one Dense with
            bias [C]; `all`: BatchNorm after each linear layer of every head [P].
        audio_layers: Linear layers of the audio head, 1 [P, C] or 2 (with ReLU between, as the
            video head has).
    """

    kind: Literal["fac", "joint"] = "fac"
    d_va: int = 512
    d_vt: int = 256
    d_joint: int = 512
    batch_norm: Literal["video", "all"] = "video"
    audio_layers: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        """Refuses spaces without width and arrangements that there are not."""
        check_choices(self, "head")
        check_positive(self, "head", "d_va", "d_vt", "d_joint")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Dropout and a Dense on the pooled features of one modality.

    Args:
        modality: Whose features; images are video of as many frames as a patch has.
        num_classes: Classes.
        dropout: On the features: 0.5 for video, 0 for audio [C].
        multi_label: Whether a clip may have several labels (AudioSet): sigmoid instead of softmax,
            and a bias that starts at −log(num_classes − 1).
    """

    modality: Literal["video", "audio"] = "video"
    num_classes: int
    dropout: float = 0.5
    multi_label: bool = False

    def __post_init__(self) -> None:
        """Refuses a classifier that has nothing to choose between."""
        check_choices(self, "classifier")
        if self.num_classes < 2 or not 0 <= self.dropout < 1:
            raise UserError(
                "classifier needs num_classes >= 2 and dropout in [0, 1), "
                f"got {self.num_classes} and {self.dropout}"
            )


@dataclass(frozen=True, kw_only=True)
class VATTConfig:
    """A whole model.

    Args:
        modalities: Which it has; a fine-tuned classifier has one.
        arrangement: `agnostic`: one encoder for the three modalities; `specific`: one each, text by
            T5.
        video: Geometry of the video clip.
        audio: Geometry of the sound.
        text: Geometry of the caption.
        encoder: The shared encoder; in the specific arrangement the one of each tower that has none
            of its own below.
        video_encoder: Own encoder of the video tower (specific arrangement only).
        audio_encoder: Own encoder of the audio tower (specific arrangement only).
        text_encoder: Own encoder of the text tower (specific arrangement only).
        head: The common spaces. None: there are none.
        classifier: A classifier on one modality's features. None: there is none.
        drop_token: Share of video and audio tokens dropped in training, in [0, 1).
        audio_drop_token: Share of audio tokens, where it is another one; None: as `drop_token`.
        d_post: Width of the Dense(GELU) after the shared encoder (agnostic arrangement only) [C:
            1024].
        format_version: Of this configuration where it is stored.
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
        """Refuses rates out of range, and parts that the model would not use or has not."""
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

    def tower(self, modality: str) -> EncoderConfig:
        """The encoder configuration that a modality goes through."""
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
        """Plain containers only, for JSON and checkpoints that load with `weights_only=True`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VATTConfig":
        """Inverse of `to_dict`.

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
