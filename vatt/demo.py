"""`vatt demo`: from nothing to a trained, evaluated model on real media, with a report to look at.

Five stages, each of which keeps what it made: corpus → shards → fit → evaluate → report.
"""

import argparse
import contextlib
import csv
import io
import json
import platform
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from datamodules.clips import Geometry
from datamodules.retrieval import RetrievalLoader, RetrievalSamples, count_captions
from datamodules.synthetic import CorpusInfo, write_corpus
from vatt.batch import Batch
from vatt.build_shards import build_shards
from vatt.checkpoint import load_model, save_model
from vatt.encode import write_atomically
from vatt.evaluate import (
    ATTRIBUTES,
    DIRECTIONS,
    EmbeddingTable,
    demo_confusions,
    demo_retrieval,
    embed,
    two_attribute_oracles,
)
from vatt.model import VATT
from vatt.report import AttentionExample, ReportClip, ReportData, write_report
from vatt.shards import ShardSet
from vatt.text import Tokenizer

NUM_TRAIN = 6_000  # videos; their clips fit a 1 GiB cache
NUM_RENDERINGS = 3  # validation videos of each held-out combination
EVALUATION_BATCH = 50
NUM_ATTENTION = 6  # clips whose attention the report shows
ABOUT = (
    "Short narrated scenes, made as real H.264/AAC files: a textured shape moves, turns, grows or "
    "bounces, with a sound that belongs to it. None of the combinations of shape, colour and "
    "motion searched here occurs in training. The numbers are means over the captions and the "
    "renderings of each combination."
)
VERSIONS = ("vatt", "torch", "lightning", "av", "numpy")


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What `vatt demo` was asked for.

    Args:
        out: Folder of the run: checkpoints, metrics, model, report.
        data: Folder of corpus and shards; several runs may share one.
        configs: Names or paths of configs, later ones win.
        seed: Of training; the corpus is the same for all.
        num_train: Training videos.
        num_renderings: Validation videos of each held-out combination.
        shuffle_captions: Control: every training video gets the captions of another one.
        overrides: Further options of `vatt fit`.
    """

    out: Path
    data: Path
    configs: tuple[str, ...] = ("demo",)
    seed: int = 0
    num_train: int = NUM_TRAIN
    num_renderings: int = NUM_RENDERINGS
    shuffle_captions: bool = False
    overrides: tuple[str, ...] = ()


@dataclass
class Stages:
    """Seconds that each stage took, printed as they end."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Times a block."""
        print(f"── {name}: {what}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        print(f"   {name} took {self.seconds[name]:.0f} s", flush=True)


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """The retrieval set of the demo: clips, and what they show.

    Args:
        shards: Where they are.
        batches: All clips, in the order of the shards.
        combinations: Shape, colour and motion of each clip.
        renderings: Which rendering of its combination a clip is.
    """

    shards: ShardSet
    batches: Sequence[Batch]
    combinations: list[tuple[str, ...]]
    renderings: list[int]

    def gallery(self) -> list[int]:
        """Rows of the first rendering, in the order of the combinations."""
        rows = [row for row, rendering in enumerate(self.renderings) if rendering == 0]
        return sorted(rows, key=lambda row: self.combinations[row])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo as a command; returns its exit code."""
    run_demo(parse_options(argv))
    return 0


def parse_options(argv: Sequence[str] | None = None) -> DemoOptions:
    """Reads the command line; what it does not know goes to `vatt fit`."""
    parser = argparse.ArgumentParser(
        prog="vatt demo",
        description="Makes a small corpus of narrated videos, trains a VATT on it from random "
        "weights, measures retrieval on combinations never seen in training, writes a report.",
        epilog="Further options go to `vatt fit`, for instance --trainer.max_steps 100.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of the run (runs/demo)"
    )
    parser.add_argument(
        "--data", type=Path, help="folder of corpus and shards, shared by runs (OUT/data)"
    )
    parser.add_argument(
        "--config",
        action="append",
        metavar="NAME",
        help="config name or path, may be repeated: demo, demo_long, demo_specific (demo)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of training (0)")
    parser.add_argument("--num-train", type=int, default=NUM_TRAIN, help="training videos (6000)")
    parser.add_argument(
        "--num-renderings",
        type=int,
        default=NUM_RENDERINGS,
        help="validation videos of each of the 100 held-out combinations (3)",
    )
    parser.add_argument(
        "--shuffle-captions",
        action="store_true",
        help="control: train with the captions of other videos; retrieval must be at chance",
    )
    known, overrides = parser.parse_known_args(argv)
    return DemoOptions(
        out=known.out,
        data=known.data or known.out / "data",
        configs=tuple(known.config or ("demo",)),
        seed=known.seed,
        num_train=known.num_train,
        num_renderings=known.num_renderings,
        shuffle_captions=known.shuffle_captions,
        overrides=tuple(overrides),
    )


def run_demo(options: DemoOptions) -> dict[str, Any]:
    """Runs all stages.

    Returns:
        What `metrics.json` holds.
    """
    started, stages = time.monotonic(), Stages()
    check_fit_options(options)
    with stages.stage("corpus", f"{options.num_train} narrated videos as H.264/AAC files"):
        corpus = write_corpus(
            options.data / "corpus",
            num_train=options.num_train,
            num_validation_renderings=options.num_renderings,
        )
    with stages.stage("shards", "videos and captions → tar shards"):
        train_shards, validation_shards = build_demo_shards(corpus, options)
    with stages.stage("fit", "contrastive training from random weights"):
        checkpoint, tokenizer, training_seconds = train(options, train_shards, validation_shards)
    with stages.stage("evaluate", "retrieval among combinations never seen in training"):
        model = load_model(checkpoint)
        save_model(model, options.out / "model", tokenizer)
        validation = read_validation_set(validation_shards, model, tokenizer)
        table = embed(model, validation.batches)
        metrics = measure(table, validation, options)
    metrics["training"]["seconds"] = round(training_seconds, 1)
    metrics["seconds"] = stages.seconds
    with stages.stage("report", str(options.out / "report.html")):
        data = collect_report(model, table, validation, corpus, metrics, options)
        write_report(options.out / "report.html", data)
    stages.seconds["total"] = round(time.monotonic() - started, 1)
    text = json.dumps(metrics, indent=2) + "\n"
    write_atomically(options.out / "metrics.json", text.encode())
    print(summary(metrics, options))
    return metrics


def build_demo_shards(corpus: CorpusInfo, options: DemoOptions) -> tuple[Path, Path]:
    """Packs the two splits into shards; returns their folders."""
    captions = None
    train = options.data / "shards" / "train"
    if options.shuffle_captions:
        train = options.data / "shards" / "train-shuffled"
        captions = options.data / "captions-shuffled.jsonl"
        shuffle_captions(corpus.folder / "train" / "captions.jsonl", captions)
    print(build_shards(corpus.folder / "train", train, captions=captions))
    validation = options.data / "shards" / "validation"
    print(build_shards(corpus.folder / "validation", validation))
    return train, validation


def shuffle_captions(source: Path, target: Path) -> None:
    """Copies a captions.jsonl with the captions of the videos exchanged at random."""
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    segments = [line["segments"] for line in lines]
    random.Random(0).shuffle(segments)
    exchanged = [{**line, "segments": s} for line, s in zip(lines, segments, strict=True)]
    write_atomically(target, "".join(json.dumps(line) + "\n" for line in exchanged).encode())


def read_validation_set(folder: Path, model: VATT, tokenizer: Tokenizer) -> ValidationSet:
    """Decodes the retrieval set, which is small, into batches."""
    shards = ShardSet(folder)
    config = model.config
    geometry = Geometry(
        video=config.video,
        audio=config.audio,
        text=config.text,
        num_candidates=count_captions(shards),
    )
    samples = RetrievalSamples(shards, tokenizer, geometry)
    combinations: list[tuple[str, ...]] = []
    renderings: list[int] = []
    seen: Counter[tuple[str, ...]] = Counter()
    for row in range(len(shards)):
        metadata = shards[row].metadata
        combination = tuple(str(metadata[name]) for name in ATTRIBUTES)
        combinations.append(combination)
        renderings.append(seen[combination])
        seen[combination] += 1
    return ValidationSet(
        shards=shards,
        batches=list(RetrievalLoader(samples, batch_size=EVALUATION_BATCH)),
        combinations=combinations,
        renderings=renderings,
    )


def collect_report(
    model: VATT,
    table: EmbeddingTable,
    validation: ValidationSet,
    corpus: CorpusInfo,
    metrics: Mapping[str, Any],
    options: DemoOptions,
) -> ReportData:
    """All that the report shows, from one gallery: a rendering of each combination."""
    gallery = validation.gallery()
    shown = table.select(gallery)
    assert shown.video_va is not None
    assert shown.video_vt is not None
    assert shown.audio_va is not None
    assert shown.text_vt is not None
    spaces = {
        "va": {"video": shown.video_va.numpy(), "audio": shown.audio_va.numpy()},
        "vt": {"video": shown.video_vt.numpy(), "text": shown.text_vt[:, 0].numpy()},
    }
    return ReportData(
        title="VATT demo",
        about=ABOUT,
        metrics=metrics,
        history=read_history(options.out),
        clips=[report_clip(validation, row, corpus) for row in gallery],
        similarity={
            "text_to_video": (shown.text_vt[:, 0] @ shown.video_vt.T).numpy(),
            "audio_to_video": (shown.audio_va @ shown.video_va.T).numpy(),
        },
        spaces=spaces,
        attention=attention_examples(model, validation, gallery),
        confusions=demo_confusions(table, validation.combinations, validation.renderings),
        config=model.config.to_dict(),
        versions={name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
    )


def report_clip(validation: ValidationSet, row: int, corpus: CorpusInfo) -> ReportClip:
    """A clip of the gallery, with its first caption."""
    record = validation.shards[row]
    shape, colour, motion = validation.combinations[row]
    return ReportClip(
        title=f"{colour} {shape}, {motion}",
        caption=record.segments[0].text,
        media=corpus.folder / "validation" / record.metadata["file"],
        attributes=validation.combinations[row],
    )


def attention_examples(
    model: VATT, validation: ValidationSet, gallery: Sequence[int]
) -> list[AttentionExample]:
    """Attention of the AGG token in some clips, spread over the gallery."""
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


def summary(metrics: Mapping[str, Any], options: DemoOptions) -> str:
    """The result as a table, and where the report is."""
    lines = [
        f"\nRetrieval among {metrics['num_candidates']} combinations never seen in training "
        f"(chance R@1 {100 / metrics['num_candidates']:.0f} %):",
        f"{'':16}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MedR':>7}   ceiling of R@1",
    ]
    for name in DIRECTIONS:
        row = metrics.get(name)
        if row is not None:
            numbers = "".join(f"{row[key]:7.1f}" for key in ("R@1", "R@5", "R@10", "MedR"))
            ceiling = f"   {row['ceiling']:.0f}" if "ceiling" in row else ""
            lines.append(f"{name.replace('_', ' '):16}{numbers}{ceiling}")
    oracles = ", ".join(f"{name} {value:.0f}" for name, value in metrics["oracles"].items())
    lines.append(f"An oracle that knows only two attributes reaches R@1: {oracles}.")
    training = metrics["training"]
    lines.append(
        f"Trained {training['steps']:.0f} steps in {training['seconds']:.0f} s, "
        f"{training['clips_per_second']:.0f} clips/s, {training['data_wait_share']:.1%} of it "
        "waiting for data."
    )
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in metrics["seconds"].items())
    lines += [f"Time: {spent}.", f"Look at {options.out / 'report.html'}"]
    return "\n".join(lines)


def fit_arguments(options: DemoOptions, train_shards: Path, validation_shards: Path) -> list[str]:
    """The command line of `vatt fit`."""
    return [
        "fit",
        *(word for name in options.configs for word in ("--config", name)),
        f"--run.dir={options.out / 'run'}",
        f"--seed_everything={options.seed}",
        f"--data.init_args.seed={options.seed}",
        f"--data.init_args.train=[{json.dumps(str(train_shards))}]",
        f"--data.init_args.validation={validation_shards}",
        *options.overrides,
    ]


def check_fit_options(options: DemoOptions) -> None:
    """Refuses a mistyped option now, not after the corpus is made."""
    from vatt.training_cli import main as training_main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        training_main([*fit_arguments(options, options.data, options.data), "--print_config"])


def train(
    options: DemoOptions, train_shards: Path, validation_shards: Path
) -> tuple[Path, Tokenizer, float]:
    """Runs `vatt fit`, or goes on with it where it was interrupted.

    Returns:
        The checkpoint, the tokenizer and the seconds of training.
    """
    from vatt.training_cli import main as training_main

    arguments = fit_arguments(options, train_shards, validation_shards)
    checkpoint = options.out / "run" / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        arguments.append("--ckpt_path=last")
    cli = training_main(arguments)
    return checkpoint, cli.datamodule.tokenizer, cli.training_seconds


def measure(
    table: EmbeddingTable, validation: ValidationSet, options: DemoOptions
) -> dict[str, Any]:
    """Retrieval metrics of the trained model, with what they must be compared to."""
    return {
        **demo_retrieval(table, validation.combinations, validation.renderings),
        "oracles": two_attribute_oracles(validation.combinations),
        "num_candidates": len(set(validation.combinations)),
        "num_renderings": len(set(validation.renderings)),
        "seed": options.seed,
        "configs": list(options.configs),
        "captions_shuffled": options.shuffle_captions,
        "training": training_figures(read_history(options.out)),
    }


def training_figures(history: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Steps, clips per second and share of time waiting for data, over the whole training."""
    rows = [row for row in history if row.get("perf/step_seconds")]
    seconds = [float(row["perf/step_seconds"]) for row in rows]
    waiting = [float(row["perf/data_wait_share"]) for row in rows]
    clips = [float(row["perf/clips_per_second"]) for row in rows]
    total = sum(seconds)
    return {
        "steps": float(rows[-1]["step"]) + 1,  # rows count from 0
        "clips_per_second": sum(c * s for c, s in zip(clips, seconds, strict=True)) / total,
        "data_wait_share": sum(w * s for w, s in zip(waiting, seconds, strict=True)) / total,
    }


def read_history(out: Path) -> list[dict[str, str]]:
    """Rows of the run's `metrics.csv`."""
    with (out / "run" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
