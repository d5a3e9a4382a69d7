"""`vatt demo`: makes a corpus, trains and evaluates a model, and writes a report.

Six stages: corpus → shards → fit → evaluate → linear → report. A second run skips finished work.
"""

import contextlib
import io
import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import yaml

from vatt.config.checks import at_least
from vatt.config.model import VATTConfig
from vatt.data.clips import Geometry
from vatt.data.loader import EvaluationLoader
from vatt.data.samples import RetrievalSamples, count_captions
from vatt.demo.corpus import write_corpus
from vatt.demo.corpus_scenes import ATTRIBUTES
from vatt.demo.linear import evaluate_linearly
from vatt.demo.report import ValidationSet, collect_report, summary
from vatt.demo.retrieval import demo_retrieval, two_attribute_oracles
from vatt.demo.stages import stage
from vatt.errors import UserError
from vatt.evaluation.embedding_table import embed
from vatt.models.card import read_card, write_model_card
from vatt.models.checkpoint import load_model, save_model
from vatt.models.training_facts import METRICS, read_metrics
from vatt.network.model import VATT
from vatt.packing.build import build_shards
from vatt.pages.report import write_report
from vatt.preprocess.tokenizer import Tokenizer
from vatt.runs.report_facts import training_figures
from vatt.shards.shard_set import ShardSet
from vatt.system.files import read_json, write_atomically
from vatt.training.optim import ScheduleConfig

EVALUATION_BATCH = 50
NUM_LINEAR = 1_500  # training videos that linear classifiers learn from


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of `vatt demo`.

    Args:
        out: Run folder, for checkpoints, metrics, model and report.
        data: Folder of corpus and shards; several runs may share it. None: OUT/data.
        configs: Name or path of a config, such as demo, tiny or demo_long; may be repeated, for
            overlays such as overlay_specific.
        seed: Seed of training.
        num_train: Number of training videos; 6,000 videos with two decoded clips each take 1.7 GiB
            of memory.
        num_renderings: Validation videos of each of the 100 held-out combinations.
        shuffle_captions: Control experiment: train with the captions of other videos; retrieval
            should be at chance level.
        overrides: Further options of `vatt fit`.
    """

    out: Annotated[Path, "FOLDER", "-o", "--out"] = Path("runs/demo")
    data: Annotated[Path | None, "FOLDER"] = None
    configs: Annotated[tuple[str, ...], "--config", "NAME", "+"] = ("demo",)
    seed: int = 0
    num_train: Annotated[int, at_least(1)] = 6_000
    num_renderings: Annotated[int, at_least(1)] = 3
    shuffle_captions: bool = False
    overrides: tuple[str, ...] = field(default=(), metadata={"option": False})

    @property
    def data_folder(self) -> Path:
        """Folder of corpus and shards."""
        return self.data or self.out / "data"

    @property
    def corpus(self) -> Path:
        """Folder of the videos."""
        return (self.data_folder / "corpus").absolute()


def demo(*, options: DemoOptions, rest: Sequence[str] = ()) -> int:
    """Makes a small corpus of narrated videos, trains a model on it and writes a report.

    Training starts from random weights; retrieval is measured on combinations that do not occur in
    training. All other options are passed to `vatt fit`, for example --trainer.max_steps 500.

    Args:
        options: Corpus, training and folders.
        rest: Options of `vatt fit`.
    """
    options = replace(options, overrides=tuple(rest))
    started = time.monotonic()
    seconds: dict[str, float] = {}
    check_fit_options(options)
    refuse_other_run(options)
    with stage("corpus", f"{options.num_train} narrated videos as H.264/AAC files", seconds):
        is_new = write_corpus(
            options.corpus,
            num_train=options.num_train,
            num_validation_renderings=options.num_renderings,
        )
    with stage("shards", "videos and captions → tar shards", seconds):
        if is_new:  # shards of an earlier corpus
            shutil.rmtree(options.data_folder / "shards", ignore_errors=True)
        train_shards, validation_shards = build_demo_shards(options)
    with stage("fit", "contrastive training from random weights", seconds):
        checkpoint, tokenizer, training_seconds = train(options, train_shards, validation_shards)
    with stage("evaluate", "retrieval among combinations never seen in training", seconds):
        model = load_model(checkpoint)
        save_model(model, options.out / "model", tokenizer)
        card = read_card(model, run=options.out / "run")
        write_model_card(options.out / "model", model, card, name="VATT demo")
        validation = read_validation_set(validation_shards, model, tokenizer)
        table = embed(model, validation.batches)
    combinations, renderings = validation.combinations, validation.renderings
    metrics: dict[str, Any] = {
        **demo_retrieval(table, combinations, renderings),
        "oracles": two_attribute_oracles(combinations),
        "num_candidates": len(set(combinations)),
        "num_renderings": len(set(renderings)),
        "seed": options.seed,
        "configs": list(options.configs),
        "captions_shuffled": options.shuffle_captions,
        "training": {
            **training_figures(read_metrics(options.out / "run" / METRICS)[1]),
            "seconds": round(training_seconds, 1),
        },
        "seconds": seconds,
    }
    with stage("linear", "linear classifiers on frozen features, and on raw inputs", seconds):
        metrics["linear_evaluation"] = measure_linearly(
            model, tokenizer, train_shards, validation, options
        )
    with stage("report", str(options.out / "report.html"), seconds):
        data = collect_report(model, table, validation, metrics, options.out)
        write_report(options.out / "report.html", data)
    seconds["total"] = round(time.monotonic() - started, 1)
    text = json.dumps(metrics, indent=2) + "\n"
    write_atomically(options.out / "metrics.json", text.encode())
    print(summary(metrics, options.out))
    return 0


def refuse_other_run(options: DemoOptions) -> None:
    """Saves the options of a run, and refuses a folder of a run with other options.

    Raises:
        UserError: the folder contains a run with other options.
    """
    asked = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(options).items()
        if name not in ("out", "data")
    }
    path = options.out / "demo.json"
    earlier = read_json(path) if path.exists() else asked
    for name, value in asked.items():
        if earlier.get(name) != value:
            raise UserError(
                f"{options.out} holds a demo with {name} {earlier.get(name)}, not {value}: "
                f"give another --out (and --data {options.data_folder} to share its corpus), or "
                "delete it"
            )
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(asked, indent=1) + "\n").encode())


def build_demo_shards(options: DemoOptions) -> tuple[Path, Path]:
    """Packs the two splits into shards; returns their folders."""
    captions, shards = None, options.data_folder / "shards"
    train, validation = shards / "train", shards / "validation"
    if options.shuffle_captions:
        train, captions = shards / "train-shuffled", options.data_folder / "captions-shuffled.jsonl"
        shuffle_captions(options.corpus / "train" / "captions.jsonl", captions)
    build = partial(build_shards, order="sorted", check_media=False)  # the files are our own
    print(build(options.corpus / "train", train, captions=captions))
    print(build(options.corpus / "validation", validation))
    return train, validation


def shuffle_captions(source: Path, target: Path) -> None:
    """Copies a captions.jsonl with shuffled captions."""
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    segments = [line["segments"] for line in lines]
    random.Random(0).shuffle(segments)
    shuffled = [{**line, "segments": s} for line, s in zip(lines, segments, strict=True)]
    write_atomically(target, "".join(json.dumps(line) + "\n" for line in shuffled).encode())


def read_validation_set(folder: Path, model: VATT, tokenizer: Tokenizer) -> ValidationSet:
    """Decodes the small retrieval set into batches."""
    shards = ShardSet(folder)
    combinations = read_combinations(shards, len(shards))
    samples = samples_of(shards, model, tokenizer, num_candidates=count_captions(shards))
    return ValidationSet(
        samples=samples,
        batches=list(EvaluationLoader(samples, batch_size=EVALUATION_BATCH)),
        combinations=combinations,
        renderings=[combinations[:row].count(one) for row, one in enumerate(combinations)],
    )


def samples_of(
    shards: ShardSet,
    model: VATT,
    tokenizer: Tokenizer,
    *,
    num_candidates: int,
    num_clips: int | None = None,
) -> RetrievalSamples:
    """The first clips of a set; None: all."""
    config = model.config
    geometry = Geometry(
        video=config.video, audio=config.audio, text=config.text, num_candidates=num_candidates
    )
    return RetrievalSamples(shards, tokenizer, geometry, num_clips=num_clips)


def read_combinations(shards: ShardSet, num_clips: int) -> list[tuple[str, ...]]:
    """Shape, colour and motion of the first clips."""
    rows = (shards[row].metadata for row in range(num_clips))
    return [tuple(str(metadata[name]) for name in ATTRIBUTES) for metadata in rows]


def fit_arguments(options: DemoOptions, train_shards: Path, validation_shards: Path) -> list[str]:
    """Command line of `vatt fit`."""
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
    """Refuses invalid options, and those whose packages are missing, before the corpus is made."""
    from vatt.runs.loggers import check_packages
    from vatt.runs.training_cli import main as training_main

    printed = io.StringIO()
    arguments = fit_arguments(options, options.out, options.out)
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        training_main([*arguments, "--print_config"])
    config = yaml.safe_load(printed.getvalue())
    check_packages(config["run"])
    settings = config["model"]["init_args"]
    VATTConfig.from_dict(settings["model"])
    max_steps = config["trainer"]["max_steps"]  # the command line copies it into the schedule
    ScheduleConfig(**{**settings["schedule"], "max_steps": max_steps})


def train(
    options: DemoOptions, train_shards: Path, validation_shards: Path
) -> tuple[Path, Tokenizer, float]:
    """Runs `vatt fit`, or resumes it.

    Returns:
        Checkpoint, tokenizer, and training time in seconds.
    """
    from vatt.runs.training_cli import main as training_main

    arguments = fit_arguments(options, train_shards, validation_shards)
    checkpoint = options.out / "run" / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        arguments.append("--ckpt_path=last")
    cli = training_main(arguments)
    return checkpoint, cli.datamodule.run_tokenizer, cli.clock.training_seconds


def measure_linearly(
    model: VATT,
    tokenizer: Tokenizer,
    train_shards: Path,
    validation: ValidationSet,
    options: DemoOptions,
) -> dict[str, Any]:
    """Trains linear classifiers on some training videos and tests them on the validation set."""
    shards = ShardSet(train_shards)
    num_clips = min(NUM_LINEAR, len(shards))
    samples = samples_of(shards, model, tokenizer, num_candidates=1, num_clips=num_clips)
    # read in this process: others would only take cores from the computation
    batches = EvaluationLoader(samples, batch_size=EVALUATION_BATCH)
    return evaluate_linearly(
        model.eval(),
        (batches, read_combinations(shards, num_clips)),
        (validation.batches, validation.combinations),
        seed=options.seed,
    )
