"""Options that commands share with the functions behind them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from vatt.config.checks import at_least, share
from vatt.config.spaces import Space
from vatt.errors import UserError

# The first hit for a caption of the demo is right as often with any bound: in 94.7 % without one,
# 95.0 with this, 95.7 with 0.5, 94.7 with whole windows. A low one loses least of how files end.
LEAST_COVERAGE = 0.2
MIN_SHORT_SIDE = 16  # pixels, one block of H.264


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """Vectors to extract, and the files that hold them.

    Args:
        window_seconds: Length of a window. None: as in training.
        hop_seconds: From the start of a window to that of the next. None: one window.
        modalities: Those to encode. None: all that model and file have.
        space: Common space; none: features of the backbone.
        return_tokens: Keep a vector for every token, of the backbone only.
        normalize: Scale vectors of common spaces to length 1.
        batch_size: Windows read and encoded at a time.
        num_workers: Processes that read; 0: this one, where a file that hangs holds up all.
        file_format: One file per input, or a data set (parquet) for all.
    """

    window_seconds: float | None = None
    hop_seconds: float | None = None
    modalities: tuple[Literal["video", "audio"], ...] | None = None
    space: Space | Literal["all"] | None = "all"
    return_tokens: Annotated[bool, "--tokens"] = False
    normalize: bool = field(default=True, metadata={"option": False})
    file_format: Annotated[Literal["npz", "safetensors", "parquet"], "--format"] = "npz"
    batch_size: Annotated[int, at_least(1)] = 8
    num_workers: int = field(default=1, metadata={"option": False})


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """Vectors that go into an index.

    Args:
        modalities: Those to index. None: all that the features have.
        spaces: Those to index, `none` for features of the backbone. None: all that the features
            have.
        model: Folder, checkpoint or name on the Hub of the model. None: as the features say.
        media: Folder in which the media lie. None: as the features say.
        approximate: Search with faiss. None: only among more than a million rows.
        least_coverage: Share of a window, in [0, 1], that its file must fill. The rest of the last
            window of a file is padding. The first window of a file counts whatever its coverage.
    """

    modalities: Annotated[tuple[Literal["video", "audio"], ...] | None, "--modality"] = None
    spaces: Annotated[tuple[Space | Literal["none"], ...] | None, "--space"] = None
    model: str | None = None
    media: Annotated[Path | None, "FOLDER"] = None
    approximate: bool | None = None
    least_coverage: Annotated[float, "SHARE", share] = LEAST_COVERAGE


@dataclass(frozen=True, kw_only=True)
class Reencoding:
    """Settings of videos that are encoded anew.

    Args:
        short_side: Most pixels of the shorter side as displayed; smaller pictures keep their size.
        key_frame_seconds: From one key frame to the next. A clip that starts anywhere decodes half
            of that for nothing, and key frames take the most bytes: 0.5, 1 and 2 s are equally
            fast to read, 10 s a third slower.
        quality: Constant rate factor of x264; 0 is lossless, 23 its default, 51 the worst.
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
