"""Spread of vectors: how much they differ beside their size."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

LEAST_ROWS = 8  # fewer vectors may be alike because their files are
LEAST_SPREAD = 0.05  # below it, cosines of all pairs are above 0.9975 in the mean


@dataclass
class Spread:
    """Standard deviation of vectors relative to their size, from running sums.

    With a spread `s`, the cosines of unit vectors are `1 - s²` in the mean over all pairs.

    Args:
        num_rows: Number of vectors.
        total: Sum of the vectors, float64 `[D]`.
        squares: Sum of their squared lengths.

    Example:
        >>> f"features {Spread().add(features_ND)}"  # features differ by 71 % of their size
    """

    num_rows: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: float = 0.0

    def add(self, rows_ND: Tensor) -> "Spread":
        """Spread with more vectors, float `[N, D]`.

        Rows of NaN or zeros, which stand for inputs without the modality, do not count.
        """
        sizes_N = rows_ND.cpu().double().norm(dim=1)
        rows_ND = rows_ND.cpu().double()[sizes_N.isfinite() & (sizes_N > 0)]
        return self + Spread(len(rows_ND), rows_ND.sum(dim=0), float(rows_ND.square().sum()))

    def __add__(self, other: "Spread") -> "Spread":
        """Spread of the vectors of both."""
        return Spread(
            self.num_rows + other.num_rows, self.total + other.total, self.squares + other.squares
        )

    @property
    def share(self) -> float:
        """Root mean square distance to the mean over root mean square length, in [0, 1].

        0 for fewer than two vectors, or if all are zero.
        """
        if self.num_rows < 2 or self.squares == 0:
            return 0.0
        of_mean = float(self.total.square().sum()) / self.num_rows / self.squares
        return max(0.0, 1 - of_mean) ** 0.5

    @property
    def is_small(self) -> bool:
        """Whether many vectors hardly differ."""
        return self.num_rows >= LEAST_ROWS and self.share < LEAST_SPREAD

    def __str__(self) -> str:
        """Spread of the vectors in words, with the remedy if they hardly differ."""
        text = f"differ by {100 * self.share:.2g} % of their size"
        if self.is_small:
            text += (
                " (hardly): standardise them before a linear classifier "
                "(classifier.standardize in fine-tuning), and compare files in a common space"
            )
        return text
