"""Results of the demo: content of its report, and a table for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from vatt.batch import Batch
from vatt.config.spaces import DIRECTIONS
from vatt.data.samples import RetrievalSamples
from vatt.demo.corpus_scenes import ATTRIBUTES
from vatt.demo.retrieval import AUDIBLE_ATTRIBUTES, demo_confusions
from vatt.evaluation.embedding_table import EmbeddingTable
from vatt.evaluation.gallery import gallery_parts
from vatt.network.model import VATT
from vatt.pages.report_data import ReportData
from vatt.runs.report import verdict_parts
from vatt.runs.report_facts import run_parts

ABOUT = (
    "Short narrated scenes, made as real H.264/AAC files: a textured shape moves, turns, grows or "
    "bounces, with a sound that belongs to it. None of the combinations of shape, colour and "
    "motion searched here occurs in training. The numbers are means over the captions and the "
    "renderings of each combination."
)


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Retrieval set of the demo.

    Args:
        samples: The clips.
        batches: Batches of all clips, in the order of the shards.
        combinations: Shape, colour and motion of each clip.
        renderings: Index of each clip among those of its combination.
    """

    samples: RetrievalSamples
    batches: Sequence[Batch]
    combinations: list[tuple[str, ...]]
    renderings: list[int]

    def gallery(self) -> list[int]:
        """Rows of the first rendering of each combination, in the order of combinations."""
        rows = [row for row, rendering in enumerate(self.renderings) if rendering == 0]
        return sorted(rows, key=lambda row: self.combinations[row])


def collect_report(
    model: VATT,
    table: EmbeddingTable,
    validation: ValidationSet,
    metrics: Mapping[str, Any],
    out: Path,
) -> ReportData:
    """Content of the report, with one rendering of each combination as candidates."""
    rows = validation.gallery()
    gallery = gallery_parts(model, validation.samples, rows, table.select(rows))
    gallery["clips"] = [
        replace(clip, title="{1} {0}, {2}".format(*combination), attributes=combination)
        for clip, row in zip(gallery["clips"], rows, strict=True)
        for combination in [validation.combinations[row]]
    ]
    return ReportData(
        **gallery,
        **run_parts(out / "run"),
        **verdict_parts(metrics, gallery["similarity"]),
        attributes=ATTRIBUTES,
        audible=AUDIBLE_ATTRIBUTES,
        title="VATT demo",
        about=ABOUT,
        metrics=metrics,
        confusions=demo_confusions(table, validation.combinations, validation.renderings),
    )


def summary(metrics: Mapping[str, Any], out: Path) -> str:
    """Results as a table, and the path of the report."""
    num_candidates = metrics["num_candidates"]
    columns = ("R@1", "R@5", "R@10", "MedR", "ceiling")
    rows = [
        [name.replace("_", " "), *map(row.get, columns), int(row["num_queries"])]
        for name in DIRECTIONS
        if (row := metrics.get(name))
    ]
    lines = [
        f"\nRetrieval among {num_candidates} combinations never seen in training "
        f"(chance R@1 {100 / num_candidates:.0f} %):",
        tabulate(rows, ["", *columns[:-1], "ceiling of R@1", "queries"], "plain", ".1f"),
    ]
    oracles = ", ".join(f"{name} {value:.0f}" for name, value in metrics["oracles"].items())
    lines.append(f"An oracle that knows only two attributes reaches R@1: {oracles}.")
    if linear := metrics["linear_evaluation"]["rows"]:
        table = [
            {
                "": f"{row['modality']}: {row['attribute']}",
                "pre-trained": row["pretrained"],
                "random weights": row["random"],
                "raw input": row["raw"],
                "chance": row["chance"],
            }
            for row in linear
        ]
        lines += [
            "Linear classifiers on frozen features, percent right on the same unseen combinations:",
            tabulate(table, "keys", "plain", ".1f"),
        ]
    training = metrics["training"]
    lines.append(
        f"Trained {training['steps']:.0f} steps in {training['seconds']:.0f} s, "
        f"{training['clips_per_second']:.0f} clips/s, {training['data_wait_share']:.1%} of it "
        "waiting for data."
    )
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in metrics["seconds"].items())
    lines += [f"Time: {spent}.", f"Look at {out / 'report.html'}"]
    return "\n".join(lines)
