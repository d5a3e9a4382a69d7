"""Scale of the scores of one query: how far a score is above those of all windows."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vatt.search.exact import exact_scores, release, spread

LEAST_ROWS = 20  # of an array whose standard deviation says anything
MOST_ROWS = 10_000  # drawn from it: the deviation is known to 1 %, in a few ms


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Distribution of the scores of one query over an array, nearly all of which do not match.

    A cosine has no scale of its own: with one model and query 0.1 is the best of a million windows,
    with another all windows have 0.9. Scores are therefore compared with those that the same query
    has elsewhere.

    Args:
        mean: Mean score.
        standard_deviation: Standard deviation of the scores.
        best_by_chance: z that the best window reaches about if none of them matches: the quantile
            1 - 1/N of a normal distribution for N windows.
    """

    mean: float
    standard_deviation: float
    best_by_chance: float

    def z(self, score: float) -> float:
        """Standard deviations by which a score is above the mean."""
        return (score - self.mean) / self.standard_deviation

    def __str__(self) -> str:
        """The z that chance alone would give, to compare others with."""
        return f"by chance the best of all windows would have about {self.best_by_chance:.1f}"


def score_scale(matrix: NDArray[np.float32], query: NDArray[np.float32]) -> Scale | None:
    """Scale of the scores of a query, from rows that are drawn at random, the same in each call.

    Args:
        matrix: Unit vectors, float32 `[N, D]`, may be memory-mapped.
        query: Unit vector, float32 `[D]`.

    Returns:
        The scale; None if there are too few rows, or all have the same score.
    """
    if len(matrix) < LEAST_ROWS:
        return None
    scores = exact_scores(matrix, spread(MOST_ROWS, len(matrix)), query)
    release(matrix)
    deviation = float(scores.std())
    if not deviation > 0:
        return None
    return Scale(
        mean=float(scores.mean()),
        standard_deviation=deviation,
        best_by_chance=NormalDist().inv_cdf(1 - 1 / len(matrix)),
    )
