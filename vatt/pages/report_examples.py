"""Queries that a report shows with their results."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

NUM_RESULTS = 5  # clips shown for a query
NUM_EXAMPLES = 4  # right queries, and as many wrong ones, for a direction that finds clips
NUM_OTHERS = 2  # the same for the other directions


@dataclass(frozen=True)
class Example:
    """A query and its results.

    Args:
        query: Index of the clip whose text, sound or picture is the query, and which is the match.
        results: Index and similarity of the clips to show, best first.
        place: Rank of the match, from 1.
    """

    query: int
    results: tuple[tuple[int, float], ...]
    place: int


def directed(similarity: Mapping[str, np.ndarray], direction: str) -> np.ndarray | None:
    """Similarities with the queries of a direction as rows, of it or its reverse; None: neither."""
    asked, sought = direction.split("_to_")
    reverse = similarity.get(f"{sought}_to_{asked}")
    return similarity.get(direction, None if reverse is None else reverse.T)


def choose_examples(similarity: np.ndarray, num_each: int = NUM_EXAMPLES) -> list[Example]:
    """Chooses queries whose match ranks first, then queries whose match does not.

    Both are spread over the set; the latter range from nearly right to the worst. Results are the
    best candidates, and the match if it is not among them.

    Args:
        similarity: float `[n, n]`; the match of row i is column i. Columns of NaN are no
            candidates, and a row asks only if its match is a number.
        num_each: Maximum number of right queries and of wrong queries.
    """
    scores = np.nan_to_num(similarity.astype(np.float64), nan=-np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")
    places = (order == np.arange(len(order))[:, None]).argmax(axis=1)
    asked = np.isfinite(similarity.diagonal())
    right = np.flatnonzero(asked & (places == 0))
    wrong = np.flatnonzero(asked & (places > 0))
    wrong = wrong[np.argsort(places[wrong], kind="stable")]
    examples = []
    for query in (*spread(right, num_each), *spread(wrong, num_each)):
        best = order[query, :NUM_RESULTS]
        shown = best[np.isfinite(scores[query, best])].tolist()
        if query not in shown:
            shown.append(query)
        results = tuple((clip, float(scores[query, clip])) for clip in shown)
        examples.append(Example(query=query, results=results, place=int(places[query]) + 1))
    return examples


def spread(items: np.ndarray, count: int) -> list[int]:
    """Evenly spaced items up to a number, including the first and the last."""
    if len(items) == 0:
        return []
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return items[chosen].tolist()
