"""Fine-tunes the demo's model on a few labelled videos, beside the same training from scratch.

Makes csvs of the demo's corpus, runs `vatt fit --config finetune_own` for every start, learning
rate and seed, and prints the accuracy on the validation videos, whose combinations of shape, colour
and motion neither training has seen. After `bash scripts/demo.sh`:

    .venv/bin/python scripts/finetune_demo.py
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vatt.demo.corpus_scenes import ATTRIBUTES
from vatt.errors import UserError
from vatt.models.training_facts import read_metrics
from vatt.system.tables import text_table

STARTS = ("pre-trained", "from scratch")
METRIC = "val/top1"
SIZES = ("arrangement", "video", "audio", "encoder", "video_encoder", "d_post")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the trainings that are not finished yet; returns the exit code."""
    options = parse_options(argv)
    corpus = options.demo / "data" / "corpus"
    model = options.demo / "model"
    try:
        files = [
            write_labels(corpus / split, options.out / f"{split}.csv", options.attribute, limit)
            for split, limit in (("train", options.per_class), ("validation", None))
        ]
        if not (model / "config.json").is_file():
            raise UserError(f"{model} holds no model: run scripts/demo.sh, or give --demo")
        accuracies = {
            (start, rate): [accuracy(options, start, rate, seed) for seed in options.seeds]
            for start in STARTS
            for rate in options.learning_rates
        }
    except UserError as error:
        print(f"finetune_demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("finetune_demo: stopped; the same command goes on after what is done")
        return 130
    print(table(accuracies, options, files))
    return 0


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="its run folder")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune-demo"), help="made here")
    parser.add_argument("--attribute", choices=ATTRIBUTES, default="motion", help="what to tell")
    parser.add_argument("--per-class", type=int, default=10, help="labelled videos of each class")
    parser.add_argument("--steps", type=int, default=100, help="of each training")
    parser.add_argument("--batch-size", type=int, default=32, help="clips of a step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[0.02, 0.08])
    return parser.parse_args(argv)


def write_labels(folder: Path, out: Path, attribute: str, limit: int | None) -> int:
    """Writes a csv of files and labels; returns the number of files.

    Args:
        folder: Folder of a split of the demo's corpus.
        out: The csv.
        attribute: Attribute that is the label.
        limit: Number of files of each class, the first ones; None: all.

    Raises:
        UserError: there is no corpus.
    """
    path = folder / "captions.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is absent: run scripts/demo.sh, or give --demo")
    counts: Counter[str] = Counter()
    rows = []
    for line in map(json.loads, path.read_text().splitlines()):
        label = line[attribute]
        counts[label] += 1
        if limit is None or counts[label] <= limit:
            rows.append((str((folder / line["file"]).absolute()), label))
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *rows])
    return len(rows)


def accuracy(options: argparse.Namespace, start: str, rate: float, seed: int) -> float:
    """Top-1 accuracy on the validation videos at the end of one training, in percent.

    Raises:
        UserError: the training failed.
    """
    name = f"{start.replace(' ', '-')}-{rate:g}-seed-{seed}"
    run = options.out / f"{options.attribute}-{options.per_class}-{options.steps}" / name
    if not (accuracies := read_accuracies(run)):
        print(f"── {name}", flush=True)
        subprocess.run(fit_command(options, run, start, rate, seed), check=False)
        accuracies = read_accuracies(run)
    if not accuracies:
        raise UserError(f"the training in {run} failed")
    return accuracies[-1]


def fit_command(
    options: argparse.Namespace, run: Path, start: str, rate: float, seed: int
) -> list[str]:
    """Command of a training; from scratch it trains the same network with random weights."""
    model = options.demo / "model"
    begin = ["--model.init_args.init_from", str(model)]
    if start != "pre-trained":
        config = json.loads((model / "config.json").read_text())
        sizes = {name: value for name, value in config.items() if name in SIZES}
        overlay = {"model": {"init_args": {"model": sizes}}}
        (options.out / "sizes.json").write_text(json.dumps(overlay))
        begin = ["--config", str(options.out / "sizes.json")]
    return [
        *(sys.executable, "-m", "vatt.cli", "fit", "--config", "finetune_own", *begin),
        *("--data.init_args.train", str(options.out / "train.csv")),
        *("--data.init_args.validation", str(options.out / "validation.csv")),
        *("--data.init_args.batch_size", str(options.batch_size)),
        # a mirrored video would move the other way, and have another colour
        *("--data.init_args.augment.flip_rate", "0"),
        *("--data.init_args.augment.color_jitter_rate", "0"),
        # the optimiser of the published recipes, to which the numbers of docs/results.md belong
        *("--model.init_args.optimizer.name", "sgd"),
        *("--model.init_args.optimizer.layer_decay", "1"),
        *("--model.init_args.optimizer.weight_decay", "0"),
        *("--model.init_args.optimizer.clip_backbone", "0.75"),
        *("--model.init_args.model.classifier.standardize", "false"),
        *("--model.init_args.optimizer.learning_rate", str(rate)),
        *("--model.init_args.schedule.warmup_steps", str(options.steps // 10)),
        *("--trainer.max_steps", str(options.steps)),
        *("--trainer.val_check_interval", str(options.steps)),
        *("--seed_everything", str(seed), "--data.init_args.seed", str(seed)),
        *("--run.dir", str(run), "--run.wandb", "disabled"),
    ]


def read_accuracies(run: Path) -> list[float]:
    """Logged accuracies of a run, in percent; empty if it has not begun."""
    _, rows = read_metrics(run / "metrics.csv")
    return [float(row[METRIC]) for row in rows if METRIC in row]


def table(
    accuracies: dict[tuple[str, float], list[float]], options: argparse.Namespace, files: list[int]
) -> str:
    """Accuracies of all trainings."""
    rows = [
        (
            start,
            f"learning rate {rate:g}",
            *(f"{v:.1f}" for v in (statistics.mean(values), *values)),
        )
        for (start, rate), values in accuracies.items()
    ]
    seeds = ", ".join(map(str, options.seeds))
    return (
        f"\n{options.attribute} of {files[1]} videos, after {options.steps} steps on {files[0]} "
        f"labelled ones: top-1 in %, mean of the seeds, and each: {seeds}"
        f"\n{text_table(rows, num_left=2)}"
    )


if __name__ == "__main__":
    sys.exit(main())
