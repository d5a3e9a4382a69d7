"""Retrieval among the demo's combinations of attributes, oracles and confusions."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations as subsets

import torch
from torch import Tensor

from vatt.demo.corpus_scenes import ATTRIBUTES
from vatt.evaluation.embedding_table import EmbeddingTable
from vatt.evaluation.retrieval import Search, metrics_by_direction, searches
from vatt.pages.report_data import AttributeConfusion

AUDIBLE_ATTRIBUTES = ("shape", "motion")  # timbre and melody; colour makes no sound


def demo_retrieval(
    table: EmbeddingTable,
    combinations: Sequence[tuple[str, ...]],
    renderings: Sequence[int],
) -> dict[str, dict[str, float]]:
    """Retrieval on the demo corpus, averaged over captions and renderings.

    A gallery is one rendering of every combination (for captions: one slot of one rendering). Every
    caption, sound and video of every rendering is a query in every gallery. The match is the clip
    of the same combination in any rendering. Properties that a sound shares only with its own
    picture (speed, phase) therefore help in only one of several galleries.

    Args:
        table: Embeddings of the validation set.
        combinations: Attribute values of each row of the table.
        renderings: Index of the rendering of each row.

    Returns:
        Metrics by direction. Directions from and to audio also have `ceiling`: the R@1 in percent
        of an oracle that knows the audible attributes exactly and guesses the others.

    Raises:
        ValueError: a rendering lacks a combination or has one twice.
    """
    metrics = metrics_by_direction(_demo_searches(table, combinations, renderings))
    ceiling = attribute_oracle(combinations, list(map(ATTRIBUTES.index, AUDIBLE_ATTRIBUTES)))
    for direction, values in metrics.items():
        if "audio" in direction:
            values["ceiling"] = ceiling
    return metrics


def attribute_oracle(combinations: Iterable[tuple[str, ...]], known: Sequence[int]) -> float:
    """Expected R@1 in percent of an oracle that knows some attributes and guesses the others.

    Args:
        combinations: Attribute values; repeated combinations count once.
        known: Positions of the attributes that the oracle knows.
    """
    distinct = set(combinations)
    # n candidates that look alike: each is found with probability 1/n, together once
    return 100.0 * len({tuple(c[i] for i in known) for c in distinct}) / len(distinct)


def two_attribute_oracles(combinations: Iterable[tuple[str, ...]]) -> dict[str, float]:
    """`attribute_oracle` of every pair of attributes: `{"shape+colour": percent, …}`."""
    distinct = set(combinations)
    pairs = subsets(range(len(ATTRIBUTES)), 2)
    return {"+".join(ATTRIBUTES[i] for i in p): attribute_oracle(distinct, p) for p in pairs}


def demo_confusions(
    table: EmbeddingTable,
    combinations: Sequence[tuple[str, ...]],
    renderings: Sequence[int],
) -> dict[str, dict[str, AttributeConfusion]]:
    """Confusions between wanted and found attributes, by direction and attribute.

    Args:
        table: Embeddings of the validation set.
        combinations: Attribute values of each row of the table.
        renderings: Index of the rendering of each row.
    """
    values = [sorted({c[i] for c in combinations}) for i in range(len(ATTRIBUTES))]
    codes = torch.tensor(
        [[v.index(x) for v, x in zip(values, c, strict=True)] for c in combinations]
    )
    counts: dict[str, list[Tensor]] = {}
    for search in _demo_searches(table, combinations, renderings):
        best = (search.queries @ search.candidates.T).nan_to_num(nan=-torch.inf).argmax(dim=1)
        asked, answered = codes[search.query_rows], codes[search.candidate_rows[best]]
        zeros = [torch.zeros(len(v), len(v), dtype=torch.int64) for v in values]
        for i, table_VV in enumerate(counts.setdefault(search.direction, zeros)):
            table_VV.index_put_((asked[:, i], answered[:, i]), torch.tensor(1), accumulate=True)
    return {
        direction: {
            name: AttributeConfusion(tuple(v), table_VV)
            for name, v, table_VV in zip(ATTRIBUTES, values, tables, strict=True)
        }
        for direction, tables in counts.items()
    }


def _demo_searches(
    table: EmbeddingTable, combinations: Sequence[tuple[str, ...]], renderings: Sequence[int]
) -> Iterator[Search]:
    if not len(table) == len(combinations) == len(renderings):
        raise ValueError(
            f"{len(table)} clips need as many combinations and renderings, "
            f"got {len(combinations)} and {len(renderings)}"
        )
    numbers = {c: i for i, c in enumerate(sorted(set(combinations)))}
    labels = torch.tensor([numbers[c] for c in combinations])
    rendering = torch.tensor(list(renderings))
    galleries = []
    for number in rendering.unique():
        rows = (rendering == number).nonzero()[:, 0]
        if len(rows) != len(numbers) or len(labels[rows].unique()) != len(numbers):
            raise ValueError(
                f"rendering {int(number)} must hold each of the {len(numbers)} combinations once, "
                f"it has {len(rows)} clips of {len(labels[rows].unique())} combinations"
            )
        galleries.append(rows)
    yield from searches(table, labels, galleries)
