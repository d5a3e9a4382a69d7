"""Results of an evaluation: `results.json`, and a table with the paper's numbers."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vatt.encoders.encoder import Encoder
from vatt.errors import Fault, fault_lines
from vatt.system.environment import describe_environment
from vatt.system.files import write_atomically
from vatt.system.tables import text_table

FILE_NAME = "results.json"
FORMS = {"num_queries": ",.0f", "num_candidates": ",.0f", "chance": ".3g"}  # others have .1f
CHANCE_EXPLAINED = "chance: R@1 of guessing, in percent"
AVERAGINGS_EXPLAINED = (
    "embeddings: the mean vector of a clip's windows is compared; similarities: every window is "
    "compared, and the mean taken"
)
Rows = Mapping[str, Mapping[str, float]]

# Published numbers: (set, arrangement of the model) → {(row, column): number}.
# Source: paper tables 4 and 8, of VATT-MBS (specific) and VATT-MA-Medium (agnostic). The rows are
# those of our tables; the paper averages embeddings, and its classifier is the low-rank one.
_TEXT_TO_VIDEO = "text_to_video, embeddings"
_LOW_RANK = "low-rank, mean of folds"
PUBLISHED: dict[tuple[str, str], dict[tuple[str, str], float]] = {
    ("youcook2", "specific"): {(_TEXT_TO_VIDEO, "R@10"): 45.5, (_TEXT_TO_VIDEO, "MedR"): 13},
    ("youcook2", "agnostic"): {(_TEXT_TO_VIDEO, "R@10"): 40.6, (_TEXT_TO_VIDEO, "MedR"): 17},
    ("msrvtt-1k", "specific"): {(_TEXT_TO_VIDEO, "R@10"): 29.7, (_TEXT_TO_VIDEO, "MedR"): 49},
    ("msrvtt-1k", "agnostic"): {(_TEXT_TO_VIDEO, "R@10"): 23.6, (_TEXT_TO_VIDEO, "MedR"): 67},
    ("ucf101", "specific"): {(_LOW_RANK, "top-1"): 89.6},
    ("ucf101", "agnostic"): {(_LOW_RANK, "top-1"): 84.4},
    ("hmdb51", "specific"): {(_LOW_RANK, "top-1"): 65.2},
    ("hmdb51", "agnostic"): {(_LOW_RANK, "top-1"): 63.1},
    ("esc50", "specific"): {(_LOW_RANK, "top-1"): 84.7},
    ("esc50", "agnostic"): {(_LOW_RANK, "top-1"): 81.2},
}
# Clips of a set, where the paper's number is of all of them: a part of it is another set.
PUBLISHED_SIZES = {"ucf101": 13_320, "esc50": 2_000}
PUBLISHED_MODELS = {"specific": "VATT-MBS", "agnostic": "VATT-MA-Medium"}


@dataclass(frozen=True, kw_only=True)
class Results:
    """Results of an evaluation.

    Args:
        task: `retrieval`, `linear`, `zero-shot` or `mteb`.
        data_set: Name of the published set, or `own`.
        protocol: Settings of the evaluation, as plain values.
        data: Paths and choices of the data.
        num_items: Number of evaluated clips (or tasks of mteb).
        num_listed: Number of clips or tasks in the annotations or on the command line.
        num_with: Number of evaluated clips with each modality, for retrieval.
        missing: Clips without media.
        unreadable: Clips whose media cannot be read.
        metrics: Metrics by row of the table, then by column.
        seed: Seed of the draws.
        unit: Name of an item, in the plural.
    """

    task: str
    data_set: str
    protocol: Mapping[str, Any]
    data: Mapping[str, Any]
    num_items: int
    num_listed: int
    num_with: Mapping[str, int] = field(default_factory=dict)
    missing: Sequence[Fault] = ()
    unreadable: Sequence[Fault] = ()
    metrics: Rows = field(default_factory=dict)
    seed: int = 0
    unit: str = "clips"


def write_results(
    results: Results,
    encoder: Encoder,
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    args: Sequence[str] = (),
) -> Path:
    """Writes `results.json`; non-finite numbers become null.

    Args:
        results: Results of the evaluation.
        encoder: Evaluated model.
        source: Path or name of the model.
        folder: Folder of the file, created if missing.
        args: Arguments of the `vatt` command.

    Returns:
        The file.
    """
    return _write(results, encoder.facts(), source, Path(folder), args)


def report(
    results: Results,
    encoder: Encoder,
    source: str | os.PathLike[str],
    folder: Path,
    args: Sequence[str],
) -> None:
    """Writes the results, see `write_results`; prints them and the path of their file."""
    facts = encoder.facts()
    path = _write(results, facts, source, folder, args)
    print(results_table(results, facts.get("arrangement")))
    print(path)


def _write(
    results: Results,
    facts: Mapping[str, Any],
    source: str | os.PathLike[str],
    folder: Path,
    args: Sequence[str],
) -> Path:
    path = folder / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    published = published_numbers(results, facts.get("arrangement"))
    content = {
        **asdict(results),
        "model": {"source": str(source), **facts},
        "published": [
            {"row": row, "column": column, "value": value}
            for (row, column), value in published.items()
        ],
        "environment": describe_environment(args),
    }
    strict = json.loads(json.dumps(content), parse_constant=lambda not_finite: None)
    text = json.dumps(strict, indent=2, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())
    return path


def published_numbers(results: Results, arrangement: str | None) -> dict[tuple[str, str], float]:
    """Numbers of the paper for this set and kind of model, by row and column of the table."""
    whole = PUBLISHED_SIZES.get(results.data_set, results.num_listed)
    if arrangement is None or results.num_listed != whole:
        return {}
    return PUBLISHED.get((results.data_set, arrangement), {})


def results_table(results: Results, arrangement: str | None) -> str:
    """Table of the metrics as text, with published numbers in brackets.

    Args:
        results: Results of the evaluation.
        arrangement: Arrangement of a VATT, `agnostic` or `specific`; None for other models.
    """
    published = published_numbers(results, arrangement)
    rows = {name: _with_chance(row) for name, row in results.metrics.items()}
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    cells = [
        [name, *(_cell(c, row.get(c), published.get((name, c))) for c in columns)]
        for name, row in rows.items()
    ]
    table = text_table([["", *(c.removeprefix("num_") for c in columns)], *cells])
    left_out = [
        *fault_lines(results.missing, "missing"),
        *fault_lines(results.unreadable, "unreadable"),
    ]
    on = f"{results.task} on {results.num_items:,} of {results.num_listed:,} {results.unit} listed"
    if results.num_with:
        on += ": " + ", ".join(f"{count:,} with {name}" for name, count in results.num_with.items())
    note = [AVERAGINGS_EXPLAINED] if any("similarities" in name for name in rows) else []
    note += [CHANCE_EXPLAINED] if "chance" in columns else []
    if published and arrangement is not None:
        note.append(f"(in brackets: {PUBLISHED_MODELS[arrangement]} in the paper)")
    return "\n".join([on, *left_out, table, *note])


def _with_chance(row: Mapping[str, float]) -> dict[str, float]:
    """A row, with the R@1 of guessing if it is one of retrieval."""
    candidates = row.get("num_candidates")
    return {**row} if candidates is None else {**row, "chance": 100 / candidates}


def _cell(column: str, value: float | None, paper: float | None) -> str:
    ours = "–" if value is None else f"{value:{FORMS.get(column, '.1f')}}"
    return ours if paper is None else f"{ours} ({paper:g})"
