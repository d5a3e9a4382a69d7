"""Sizes of a clip: frames, pixels, samples, words and the patches they are cut into."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from vatt.config.checks import check_at_most, check_choices, check_positive, check_sizes
from vatt.errors import UserError

MODALITIES = ("video", "audio", "text")
MAX_TOKENS = 1 << 17  # of a clip, which must fit into memory; the paper's have 1,568 and 1,200
MAX_WORDS = 1 << 13  # of a caption
MAX_WINDOW_SAMPLES, MAX_MELS = 1 << 16, 1 << 10  # their filter bank has 0.1 GB


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Geometry of an RGB video clip, `[num_frames, image_size, image_size, 3]`.

    Args:
        num_frames: Frames per clip, `T`.
        frame_rate: Frames per second at which a clip is sampled; 32 frames at 10 fps = 3.2 s.
        image_size: Height and width in pixels.
        patch_size: Frames, rows and columns of one token.
        position_grid: Number of learned positions along time, height and width; interpolated if a
            clip has another grid. None: one per token of this geometry.
        input_scale: Factor applied to the pixels in [-1, 1] before patching, 1 [P, C]. Small models
            that train for minutes learn faster if tokens are as large as their positions.
    """

    num_frames: int = 32
    frame_rate: float = 10.0
    image_size: int = 224
    patch_size: tuple[int, int, int] = (4, 16, 16)
    position_grid: tuple[int, int, int] | None = None
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuses a clip that patches do not fill exactly."""
        check_positive(self, "video", "num_frames", "frame_rate", "image_size")
        check_sizes("video.patch_size", self.patch_size, 3)
        check_sizes("video.position_grid", self.position_grid, 3)
        check_at_most("the number of values in video.patch_size", 3 * math.prod(self.patch_size))
        for axis, patches in (("num_frames", self.patch_size[:1]), ("image_size", self.patch_size)):
            if any(getattr(self, axis) % patch for patch in patches[-2:]):
                raise UserError(
                    f"video.{axis} ({getattr(self, axis)}) must be a multiple of its patch size, "
                    f"got patch_size={self.patch_size}"
                )
        check_at_most("the number of tokens of a clip of video", self.num_tokens, MAX_TOKENS)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of tokens along time, height and width."""
        frames, height, width = self.patch_size
        return self.num_frames // frames, self.image_size // height, self.image_size // width

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a whole clip, before DropToken."""
        return math.prod(self.grid)

    @property
    def duration_seconds(self) -> float:
        """Length of a clip in seconds."""
        return self.num_frames / self.frame_rate

    def of_length(self, seconds: float) -> "VideoConfig":
        """The same geometry for another length, which is rounded to whole patches."""
        patch = self.patch_size[0]
        num_frames = max(1, round(seconds * self.frame_rate / patch)) * patch
        return replace(self, num_frames=num_frames)


@dataclass(frozen=True, kw_only=True)
class VideoWindow:
    """Window of video for a model whose own processor scales the frames.

    Frames are read in the file's size, `[num_frames, H, W, 3]`.

    Args:
        num_frames: Frames of a window, `T`.
        frame_rate: Frames per second at which a window is sampled.
        has_fixed_count: Whether windows of every length have the same number of frames, evenly
            spread; otherwise the frame rate is the same.
        image_size: None: the size of the file.
        is_padded: Whether the last frame repeats past the end of a file, and its sound is zeros.
            Otherwise the last window ends with the file.
    """

    num_frames: int
    frame_rate: float
    has_fixed_count: bool = False
    image_size: None = None
    is_padded: bool = True

    def __post_init__(self) -> None:
        """Refuses windows without frames."""
        check_positive(self, "video", "num_frames", "frame_rate")

    @property
    def duration_seconds(self) -> float:
        """Length of a window in seconds."""
        return self.num_frames / self.frame_rate

    def of_length(self, seconds: float) -> "VideoWindow":
        """The same geometry for another length."""
        if self.has_fixed_count:
            return replace(self, frame_rate=self.num_frames / seconds)
        return replace(self, num_frames=max(1, round(seconds * self.frame_rate)))


@dataclass(frozen=True, kw_only=True)
class SpectrogramConfig:
    """Log-mel spectrogram of a waveform, `[M, F]` in [0, 1] (`vatt.network.log_mel.LogMel`).

    Args:
        window_samples: Length of a Hann window in samples; 2048 at 48 kHz = 43 ms.
        hop_samples: Samples from one window to the next.
        num_mels: Number of mel bins, `F`.
        min_hertz: Lower edge of the lowest mel bin.
        max_hertz: Upper edge of the highest mel bin.
        patch_size: Windows and mel bins of one token; an incomplete patch is left out.
        transposed_positions: Whether positions are looked up in mel-major order, although tokens
            are in time-major order: an error of the official code that its released weights need
            [C].
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
        check_positive(self, "audio.spectrogram", "window_samples", most=MAX_WINDOW_SAMPLES)
        check_positive(self, "audio.spectrogram", "hop_samples")
        check_positive(self, "audio.spectrogram", "num_mels", most=MAX_MELS)
        check_sizes("audio.spectrogram.patch_size", self.patch_size, 2)
        check_at_most(
            "the number of values in audio.spectrogram.patch_size", math.prod(self.patch_size)
        )
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
        sample_rate: Sample rate in Hz.
        num_samples: Samples per clip, `S`; 153,600 at 48 kHz = 3.2 s.
        patch_size: Samples per token, if tokens are patches of the waveform.
        spectrogram: Log-mel spectrogram whose patches become tokens. None: patches of the waveform.
        position_grid: Number of learned positions, (tokens,) for a waveform, (time, mel) for a
            spectrogram; interpolated if a clip has another grid. None: one per token of this
            geometry.
        input_scale: Factor applied to the waveform before patching, 1 [P, C]; see `VideoConfig`.
    """

    sample_rate: int = 48_000
    num_samples: int = 153_600
    patch_size: int = 128
    spectrogram: SpectrogramConfig | None = None
    position_grid: tuple[int, ...] | None = None
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuses a length that patches do not fill exactly."""
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
        check_at_most("the number of tokens of a clip of audio", self.num_tokens, MAX_TOKENS)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of tokens along time or, for a spectrogram, along time and mel bins."""
        mel = self.spectrogram
        if mel is None:
            return (self.num_samples // self.patch_size,)
        windows = -(-self.num_samples // mel.hop_samples)
        return windows // mel.patch_size[0], mel.num_mels // mel.patch_size[1]

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a whole clip, before DropToken."""
        return math.prod(self.grid)

    @property
    def duration_seconds(self) -> float:
        """Length of a clip in seconds."""
        return self.num_samples / self.sample_rate

    def of_length(self, seconds: float) -> "AudioConfig":
        """The same geometry for another length, which is rounded to whole patches."""
        patch = self.patch_size
        if self.spectrogram is not None:
            patch = self.spectrogram.patch_size[0] * self.spectrogram.hop_samples
        num_samples = max(1, round(seconds * self.sample_rate / patch)) * patch
        return replace(self, num_samples=num_samples)


@dataclass(frozen=True, kw_only=True)
class AudioWindow:
    """Window of mono sound for a model with a processor of its own.

    Args:
        num_samples: Samples of a window, `S`.
        sample_rate: Sample rate in Hz.
        most_seconds: Longest window that the model hears whole. None: any length.
        is_padded: Whether sound past the end of a file is zeros. Otherwise the last window is
            shorter, and the model's processor fills it in its own way.
    """

    num_samples: int
    sample_rate: int
    most_seconds: float | None = None
    is_padded: bool = True

    def __post_init__(self) -> None:
        """Refuses windows without samples, or longer than the model hears."""
        check_positive(self, "audio", "num_samples", "sample_rate")
        most = self.most_seconds
        if most is not None and self.duration_seconds > most:
            raise UserError(
                f"this model hears {most:g} s at once, got windows of {self.duration_seconds:g} s: "
                "choose shorter ones"
            )

    @property
    def duration_seconds(self) -> float:
        """Length of a window in seconds."""
        return self.num_samples / self.sample_rate

    def of_length(self, seconds: float) -> "AudioWindow":
        """The same geometry for another length."""
        return replace(self, num_samples=max(1, round(seconds * self.sample_rate)))


VideoGeometry = VideoConfig | VideoWindow
AudioGeometry = AudioConfig | AudioWindow


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Geometry of a caption, and settings of text towers.

    Args:
        tower: Text tower of the specific arrangement: `t5`, or `linear`: relu(Dense) of each word
            vector, then the maximum over all words including padding.
        vocab_size: Number of ids including padding; id 0 is padding.
        max_words: Maximum number of words of a caption, `J`; further words are cut.
        d_embedding: Width of the word vectors. Both the agnostic arrangement and the T5 tower
            project it to `d_model`, with a GELU.
        train_embedding: Whether word vectors are trained. The official code starts from word2vec
            and keeps it frozen; random ones must be trained.
        relative_buckets: Number of buckets of T5's relative attention bias.
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
        check_positive(self, "text", "max_words", most=MAX_WORDS)
        check_positive(self, "text", "d_embedding", "d_linear")
        if self.vocab_size < 2:  # padding and a word
            raise UserError(f"text.vocab_size must be at least 2, got {self.vocab_size}")
        check_positive(self, "text", "vocab_size")
        if self.relative_buckets < 4 or self.relative_max_distance <= self.relative_buckets // 4:
            raise UserError(
                "text needs relative_buckets >= 4 and relative_max_distance > a quarter of them, "
                f"got {self.relative_buckets} and {self.relative_max_distance}"
            )
        check_positive(self, "text", "relative_buckets")
