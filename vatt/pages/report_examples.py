"""Queries that a report shows with their results."""

from dataclasses import dataclass

import numpy as np

NUM_RESULTS = 5  # clips shown for a query
NUM_EXAMPLES = 4  # right queries, and as many wrong ones, for a direction


@dataclass(frozen=True)
class Example:
    """A query and its results.

    Args:
        query: Number of the clip whose text or sound is the query; it is the right answer.
        results: Number and similarity of the clips shown, best first.
        place: Rank of the right clip, from 1.
    """

    query: int
    results: tuple[tuple[int, float], ...]
    place: int


def choose_examples(similarity: np.ndarray, num_each: int = NUM_EXAMPLES) -> list[Example]:
    """Chooses queries that find their clip at once, then queries that do not.

    Both are spread over the set, wrong ones from the nearly right to the worst. The results are the
    best candidates, and the right one if it is not among them.

    Args:
        similarity: float `[n, n]`; the right candidate of row i is column i; rows of NaN are no
            queries.
        num_each: Number of right queries, and of wrong ones, at most.
    """
    scores = np.nan_to_num(similarity.astype(np.float64), nan=-np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")
    places = (order == np.arange(len(order))[:, None]).argmax(axis=1)
    asked = np.isfinite(similarity).any(axis=1)
    right = np.flatnonzero(asked & (places == 0))
    wrong = np.flatnonzero(asked & (places > 0))
    wrong = wrong[np.argsort(places[wrong], kind="stable")]
    examples = []
    for query in (*spread(right, num_each), *spread(wrong, num_each)):
        shown = order[query, :NUM_RESULTS].tolist()
        if query not in shown:
            shown.append(query)
        results = tuple((clip, float(scores[query, clip])) for clip in shown)
        examples.append(Example(query=query, results=results, place=int(places[query]) + 1))
    return examples


def spread(items: np.ndarray, count: int) -> list[int]:
    """At most so many of the items, evenly spaced, with the first and the last."""
    if len(items) == 0:
        return []
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return items[chosen].tolist()
