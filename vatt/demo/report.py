"""Results of the demo: content of its report, and a table for the terminal."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from vatt.batch import Batch
from vatt.config.spaces import DIRECTIONS
from vatt.demo.corpus_scenes import ATTRIBUTES
from vatt.demo.retrieval import AUDIBLE_ATTRIBUTES, demo_confusions
from vatt.evaluation.embedding_table import EmbeddingTable
from vatt.models.training_facts import METRICS, read_metrics
from vatt.network.model import VATT
from vatt.pages.report_data import AttentionExample, ReportClip, ReportData
from vatt.shards.shard_set import ShardSet

NUM_ATTENTION = 6  # clips whose attention the report shows
ABOUT = (
    "Short narrated scenes, made as real H.264/AAC files: a textured shape moves, turns, grows or "
    "bounces, with a sound that belongs to it. None of the combinations of shape, colour and "
    "motion searched here occurs in training. The numbers are means over the captions and the "
    "renderings of each combination."
)
VERSIONS = ("vatt", "torch", "lightning", "av", "numpy")


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Retrieval set of the demo.

    Args:
        shards: Shards with the clips.
        batches: Batches of all clips, in the order of the shards.
        combinations: Shape, colour and motion of each clip.
        renderings: Index of each clip among those of its combination.
    """

    shards: ShardSet
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
    corpus: Path,
    metrics: Mapping[str, Any],
    out: Path,
) -> ReportData:
    """Content of the report, with one rendering of each combination as candidates."""
    gallery = validation.gallery()
    shown = table.select(gallery)
    assert shown.video_va is not None
    assert shown.video_vt is not None
    assert shown.audio_va is not None
    assert shown.text_vt is not None
    first_texts = shown.text_vt[:, 0]
    return ReportData(
        attributes=ATTRIBUTES,
        audible=AUDIBLE_ATTRIBUTES,
        title="VATT demo",
        about=ABOUT,
        metrics=metrics,
        history=read_metrics(out / "run" / METRICS)[1],
        clips=[report_clip(validation, row, corpus) for row in gallery],
        similarity={
            "text_to_video": (first_texts @ shown.video_vt.T).numpy(),
            "audio_to_video": (shown.audio_va @ shown.video_va.T).numpy(),
        },
        spaces={
            "va": {"video": shown.video_va.numpy(), "audio": shown.audio_va.numpy()},
            "vt": {"video": shown.video_vt.numpy(), "text": first_texts.numpy()},
        },
        attention=attention_examples(model, validation, gallery),
        confusions=demo_confusions(table, validation.combinations, validation.renderings),
        config=model.config.to_dict(),
        versions={name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
    )


def report_clip(validation: ValidationSet, row: int, corpus: Path) -> ReportClip:
    """A clip of the gallery, with its first caption."""
    record = validation.shards[row]
    shape, colour, motion = validation.combinations[row]
    return ReportClip(
        title=f"{colour} {shape}, {motion}",
        caption=record.segments[0].text,
        media=corpus / "validation" / record.metadata["file"],
        attributes=validation.combinations[row],
    )


def attention_examples(
    model: VATT, validation: ValidationSet, gallery: Sequence[int]
) -> list[AttentionExample]:
    """Attention of the AGG token in some clips of the gallery, evenly spaced."""
    stride = max(1, len(gallery) // NUM_ATTENTION)
    rows = list(gallery[stride // 2 :: stride])[:NUM_ATTENTION]
    videos = torch.cat([b.video for b in validation.batches if b.video is not None])[rows]
    attention = model.agg_attention(videos)
    return [
        AttentionExample(
            title=" ".join(validation.combinations[row]),
            frames=video.numpy(),
            attention=weights.numpy(),
        )
        for row, video, weights in zip(rows, videos, attention, strict=True)
    ]


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


def training_figures(out: Path) -> dict[str, float]:
    """Steps, clips per second and share of time waiting for data, over the whole training."""
    rows = [row for row in read_metrics(out / "run" / METRICS)[1] if row.get("perf/step_seconds")]
    if not rows:
        return {"steps": 0.0, "clips_per_second": 0.0, "data_wait_share": 0.0}
    seconds = [float(row["perf/step_seconds"]) for row in rows]

    def mean(name: str) -> float:
        return float(np.average([float(row[f"perf/{name}"]) for row in rows], weights=seconds))

    return {
        "steps": float(rows[-1]["step"]) + 1,  # rows count from 0
        "clips_per_second": mean("clips_per_second"),
        "data_wait_share": mean("data_wait_share"),
    }
