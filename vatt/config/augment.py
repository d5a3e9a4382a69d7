"""Settings of augmentation."""

import math
from dataclasses import dataclass
from typing import Literal

from vatt.errors import UserError

# Source: `scale_jitter_augm` of DMVR with the arguments of the official code in pre-training.
OFFICIAL_SCALE_RANGE = (0.8, 1.2)
OFFICIAL_SCALE_RATE = 0.8
PAPER_AREA_RANGE, PAPER_ASPECT_RANGE = (0.08, 1.0), (0.5, 2.0)  # section 4.1


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of training clips.

    By default, colours change as in the paper, noise is that of the official code, and the crop
    (`scale`) is ours. The recipes of published models name their crop.

    Args:
        crop: `official` multiplies width and height by independent factors of 0.8 to 1.2 in 80 % of
            the clips, scales the shorter side to the image size and crops a random square (official
            code, pre-training). `paper` crops a rectangle of 8 to 100 % of the area and of an
            aspect of 0.5 to 2, and stretches it to a square (paper; both in fine-tuning). `area`
            is the same with other ranges. `scale` enlarges the picture and crops a random square.
            `area` and `paper` take longer to read, because more of the picture is scaled.
        scale_range: For `scale`: range of a uniform factor; before cropping, the short side is
            scaled to this factor times the image size. (1, 1) crops along the longer side only.
        area_range: For `area`: smallest and largest share of the picture, in [0, 1].
        aspect_range: For `area`: smallest and largest ratio of width to height.
        flip_rate: Share of clips that are mirrored. Use 0 if captions mention left and right.
        color_jitter_rate: Share of clips whose colours are changed. Use 0 if captions mention
            colours.
        audio_noise: Standard deviation of added noise, relative to the largest amplitude of the
            clip.
        num_time_masks: SpecAugment: number of time intervals to blank in a log-mel spectrogram.
            Only for models that take spectrograms.
        num_mel_masks: SpecAugment: number of intervals of mel bins to blank.
        largest_time_mask: Maximum share of the windows that one mask covers.
        largest_mel_mask: Maximum share of the mel bins that one mask covers.

    Raises:
        UserError: a value is out of range.
    """

    crop: Literal["scale", "area", "official", "paper"] = "scale"
    scale_range: tuple[float, float] = (1.0, 1.25)  # ours: at most 36 % of the area is cut off
    area_range: tuple[float, float] = PAPER_AREA_RANGE
    aspect_range: tuple[float, float] = PAPER_ASPECT_RANGE
    flip_rate: float = 0.5
    color_jitter_rate: float = 0.8
    audio_noise: float = 0.01
    num_time_masks: int = 0
    num_mel_masks: int = 0
    largest_time_mask: float = 0.2  # SpecAugment (arXiv 1904.08779): at most 0.2, of speech
    largest_mel_mask: float = 0.34  # the same: 27 of 80 bins

    @property
    def masks_spectrogram(self) -> bool:
        """Whether spectrograms are masked."""
        return self.num_time_masks + self.num_mel_masks > 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        scale, area, aspect = self.scale_range, self.area_range, self.aspect_range
        rates = ("flip_rate", "color_jitter_rate", "largest_time_mask", "largest_mel_mask")
        counts = ("audio_noise", "num_time_masks", "num_mel_masks")
        for name, fits, wanted in (
            ("scale_range", 1 <= scale[0] <= scale[1], "1 ≤ low ≤ high"),
            (
                "crop",
                self.crop in ("scale", "area", "official", "paper"),
                "'scale', 'area', 'official' or 'paper'",
            ),
            (
                "crop",
                self.crop != "paper"
                or (tuple(area), tuple(aspect)) == (PAPER_AREA_RANGE, PAPER_ASPECT_RANGE),
                "'area' if area_range or aspect_range are not those of the paper",
            ),
            ("area_range", 0 < area[0] <= area[1] <= 1, "0 < low ≤ high ≤ 1"),
            ("aspect_range", 0 < aspect[0] <= aspect[1] < math.inf, "0 < low ≤ high"),
            *((name, 0 <= getattr(self, name) <= 1, "in [0, 1]") for name in rates),
            *((name, getattr(self, name) >= 0, "at least 0") for name in counts),
        ):
            if not fits:
                raise UserError(f"augment.{name} must be {wanted}, got {getattr(self, name)!r}")
