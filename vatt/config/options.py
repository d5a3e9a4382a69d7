"""Options that commands share with the functions that they call."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from vatt.config.checks import at_least, share
from vatt.config.spaces import MediaModality, Space
from vatt.errors import UserError

# The first hit for a caption of the demo is right as often with any bound: in 94.7 % without one,
# 95.0 with this, 95.7 with 0.5, 94.7 with whole windows. A low one loses least of how files end.
LEAST_COVERAGE = 0.2
MIN_SHORT_SIDE = 16  # pixels, one block of H.264


Backend = Literal["torch", "onnx"]  # what runs a model


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """Vectors to extract, and the format of their files.

    Args:
        window_seconds: Length of a window. None: as in training.
        hop_seconds: Time from the start of one window to the next. None: one window.
        modalities: Modalities to encode; video_audio: both as one item. None: those that model and
            file have, one by one.
        space: Common space; none: features of the backbone.
        return_tokens: Store a vector for every token of the backbone; needs space none.
        normalize: Scale embeddings to length 1.
        batch_size: Windows per batch.
        num_workers: Processes that read. 0: this process reads; a file that hangs then stops it.
        file_format: One file per input, or one data set for all inputs (parquet).
        replace: Replace features in the folder that another model or other settings made.
    """

    window_seconds: float | None = None
    hop_seconds: float | None = None
    modalities: Annotated[tuple[MediaModality, ...] | None, "--modality"] = None
    space: Space | Literal["all"] | None = "all"
    return_tokens: Annotated[bool, "--tokens"] = False
    normalize: bool = field(default=True, metadata={"option": False})
    file_format: Annotated[Literal["npz", "safetensors", "parquet"], "--format"] = "npz"
    replace: bool = False
    batch_size: Annotated[int, at_least(1)] = 8
    num_workers: int = field(default=1, metadata={"option": False})


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """Vectors that go into an index.

    Args:
        modalities: Modalities to index. None: all that the features have.
        spaces: Spaces to index; none: features of the backbone. None: all that the features have.
        model: Model folder, checkpoint or name on the Hub. None: as stored with the features.
        media: Folder of the media. None: as stored with the features.
        approximate: Search with faiss. None: only for more than a million rows.
        least_coverage: Leave out a window if its file fills less than this share of it, in [0, 1].
            The first window of a file is always indexed.
    """

    modalities: Annotated[tuple[MediaModality, ...] | None, "--modality"] = None
    spaces: Annotated[tuple[Space | Literal["none"], ...] | None, "--space"] = None
    model: str | None = None
    media: Annotated[Path | None, "FOLDER"] = None
    approximate: bool | None = None
    least_coverage: Annotated[float, "SHARE", share] = LEAST_COVERAGE


@dataclass(frozen=True, kw_only=True)
class Reencoding:
    """Settings of re-encoded videos.

    Args:
        short_side: Maximum length of the shorter side as displayed; smaller pictures keep their
            size.
        key_frame_seconds: Time between key frames. Reading a clip also decodes the frames since the
            key frame before it, on average half of this time; but key frames take the most bytes.
            Reading is equally fast with 0.5, 1 and 2 s, and a third slower with 10 s.
        quality: Constant rate factor of x264: 0 is lossless, 23 is x264's default, 51 the worst.
    """

    short_side: Annotated[int, "PIXELS"]
    key_frame_seconds: float = 1.0
    quality: Annotated[int, "CRF"] = 20  # finer than x264's: these are second losses of most files

    def __post_init__(self) -> None:
        """Refuses what cannot be encoded."""
        if self.short_side < MIN_SHORT_SIDE or self.short_side % 2:
            raise UserError(
                f"the short side must be an even number of pixels, at least {MIN_SHORT_SIDE}, got "
                f"{self.short_side}"
            )
        if not 0 < self.key_frame_seconds < float("inf"):
            raise UserError(
                "the time between key frames must be positive and finite, got "
                f"{self.key_frame_seconds}"
            )
        if not 0 <= self.quality <= 51:
            raise UserError(f"the quality must be from 0 (lossless) to 51, got {self.quality}")
