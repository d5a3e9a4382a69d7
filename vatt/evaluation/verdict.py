"""Verdict on retrieval: whether a model finds more than guessing, and how sure that is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from vatt.config.spaces import DIRECTIONS
from vatt.evaluation.retrieval import recall_interval
from vatt.pages.report_examples import directed

# With fewer clips, hardly any result but a perfect one is more than luck: of 4, all right answers
# come about by guessing in 1 of 24 cases.
FEW_CLIPS = 10
MAX_P_VALUE = 0.01  # at most 6 directions are tested: less than 6 % of models without skill pass
NUM_PERMUTATIONS = 4_999  # all of them where there are no more: up to 6 clips
NOUNS = {"video": "clip", "audio": "sound", "text": "sentence"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Comparison of retrieval in one direction with guessing.

    Args:
        direction: Such as `text_to_video`.
        num_queries: Number of queries.
        num_clips: Number of clips that they are about: several captions of a clip are not
            independent.
        num_candidates: Number of candidates.
        recall: R@1 in percent.
        interval: Its 95 % confidence interval in percent, see `recall_interval`.
        place: Mean rank of the match, from 1, among clips with both modalities.
        p_value: Probability of so good a mean rank if matches were random (`permutation_test`).
    """

    direction: str
    num_queries: int
    num_clips: int
    num_candidates: float
    recall: float
    interval: tuple[float, float]
    place: float
    p_value: float

    @property
    def chance(self) -> float:
        """R@1 of guessing in percent."""
        return 100 / self.num_candidates

    @property
    def is_sure_by_recall(self) -> bool:
        """Whether R@1 alone is above that of guessing."""
        return self.num_clips >= FEW_CLIPS and self.interval[0] > self.chance

    @property
    def is_above(self) -> bool:
        """Whether the model finds more than guessing."""
        return self.is_sure_by_recall or self.p_value < MAX_P_VALUE

    @property
    def word(self) -> str:
        """The verdict in some words."""
        if self.is_above:
            return "above chance"
        return "too few queries to say" if self.num_clips < FEW_CLIPS else "not above chance"

    @property
    def arrow(self) -> str:
        """The direction, such as `text → video`."""
        return self.direction.replace("_to_", " → ")

    def __str__(self) -> str:
        """Numbers in a sentence part."""
        asked, sought = (NOUNS[name] for name in self.direction.split("_to_"))
        low, high = self.interval
        queries = "1 query" if self.num_queries == 1 else f"{self.num_queries:,} queries"
        text = (
            f"given a {asked}, the right {sought} of {self.num_candidates:,.0f} is the first for "
            f"{self.recall:.3g} % of {queries} (95 % interval {low:.2g} to {high:.2g} %), and "
            f"guessing would get {self.chance:.2g} %"
        )
        if self.is_sure_by_recall:
            return text
        luck = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.2g}"
        return (
            f"{text}; its mean place is {self.place:.3g}, which luck reaches with {luck} "
            "(permutation test)"
        )


def judge(
    metrics: Mapping[str, Mapping[str, float]], similarity: Mapping[str, NDArray[np.floating]]
) -> list[Verdict]:
    """Verdicts of all directions that were measured.

    Args:
        metrics: Metrics by direction, see `vatt.evaluation.retrieval.retrieval`.
        similarity: float `[n, n]` by direction: row i asks with clip i, and column j is clip j;
            NaN for a clip without the modality. The reverse of a direction need not be given.
    """
    verdicts = []
    for direction in (name for name in DIRECTIONS if name in metrics):
        scores = directed(similarity, direction)
        if scores is None:
            continue
        both = np.isfinite(scores.diagonal())
        place, p_value = permutation_test(scores[np.ix_(both, both)])
        values, num_clips = metrics[direction], int(both.sum())
        recall, num_queries = values["R@1"], int(values["num_queries"])
        hits = recall / 100 * num_queries
        verdicts.append(
            Verdict(
                direction=direction,
                num_queries=num_queries,
                num_clips=num_clips,
                num_candidates=values["num_candidates"],
                recall=recall,
                interval=recall_interval(hits, num_queries, min(num_clips, num_queries)),
                place=place,
                p_value=p_value,
            )
        )
    return verdicts


def permutation_test(scores: NDArray[np.floating], seed: int = 0) -> tuple[float, float]:
    """Test of the mean rank of the matches on the diagonal, against random matches.

    Sees far smaller effects than R@1, as every rank counts. Random matches are permutations of the
    clips, so hubs and a gap between the modalities do not pass for skill.

    Args:
        scores: float `[n, n]`, finite; the match of row i is column i.
        seed: Seed of the permutations.

    Returns:
        Mean rank of the matches, from 1, and the share of permutations with a mean rank as good,
        the actual one included. (1, 1) for a single clip.
    """
    n = len(scores)
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(n)[None, :].repeat(n, axis=0), axis=1)
    rows, actual = np.arange(n), int(ranks.trace())
    place = 1 + actual / max(n, 1)
    if math.factorial(min(n, 20)) <= NUM_PERMUTATIONS:
        sums = [int(ranks[rows, list(one)].sum()) for one in permutations(range(n))]
        return place, sum(value <= actual for value in sums) / len(sums)
    generator, num_as_good = np.random.default_rng(seed), 1
    for part in np.array_split(np.empty(NUM_PERMUTATIONS), 1 + n // 100):  # some MB at a time
        drawn = generator.permuted(np.tile(rows, (len(part), 1)), axis=1)
        num_as_good += int((ranks[rows, drawn].sum(axis=1) <= actual).sum())
    return place, num_as_good / (1 + NUM_PERMUTATIONS)


def verdict_sentence(verdicts: Sequence[Verdict]) -> str:
    """One sentence that says whether the model learned more than chance, and how sure that is."""
    if not verdicts:
        return "Nothing could be searched, so nothing can be said about what the model has learned."
    above = [one for one in verdicts if one.is_above]
    if not above:
        shown = max(verdicts, key=lambda one: one.num_clips)  # the first of several
        if shown.num_clips < FEW_CLIPS:
            few = "1 query" if shown.num_queries == 1 else f"{shown.num_queries} queries"
            lead = f"With {few} nothing can be said about what the model has learned"
        else:
            lead = "Nothing shows that the model has learned more than chance"
        return f"{lead}: {shown}."
    lead = "The model has learned more than chance"
    others = [one.arrow for one in verdicts if not one.is_above]
    rest = f"; this is not shown for {', '.join(others)}" if others else ""
    return f"{lead}: {above[0]}{rest}."
