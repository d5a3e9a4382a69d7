"""`vatt evaluate retrieval | linear | zero-shot`: one short function each."""

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vatt.errors import UserError
from vatt.machine import num_cores

if TYPE_CHECKING:
    from vatt.evaluation_items import EvaluationSet
    from vatt.model import VATT
    from vatt.results import Results
    from vatt.text import Tokenizer

PAPER_FRAME_RATE = 12.5  # every second frame of 25, to which published numbers belong


def evaluate(argv: Sequence[str]) -> int:
    """`vatt evaluate TASK MODEL --data DATA`."""
    parser = argparse.ArgumentParser(
        "vatt evaluate", description="Measures a model by the published protocols."
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    _add_retrieval(tasks)
    arguments = parser.parse_args(argv)
    run = {"retrieval": _retrieval}[arguments.task]
    with _process_group():
        return run(arguments, argv)


def _add_retrieval(tasks: Any) -> None:
    parser = tasks.add_parser("retrieval", help="text, video and sound find each other")
    _add_common(parser)
    parser.add_argument(
        "--data",
        required=True,
        help="shards; or MSR-VTT's csv or json, or YouCook2's json, with --videos",
    )
    parser.add_argument("--videos", type=Path, help="folder of the files that annotations name")
    parser.add_argument("--split", help="of annotations; default: that of published results")
    parser.add_argument(
        "--clips",
        choices=("records", "segments"),
        default="records",
        help="of shards: a clip is a record with all its captions (default), or a timed caption",
    )
    parser.add_argument("--tokenizer", type=Path, help="default: the tokenizer.json of the model")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="model folder, or .ckpt of a run")
    parser.add_argument("--out", type=Path, help="folder for results.json; default runs/evaluate-…")
    parser.add_argument("--windows", type=int, default=4, help="of each clip, evenly spread")
    parser.add_argument(
        "--frame-rate",
        type=float,
        help="frames shown a second; default 12.5 for published sets, else the model's",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="clips embedded at once")
    parser.add_argument("--workers", type=int, default=num_cores(), help="reading processes")
    parser.add_argument("--device", default="auto", help="cpu, cuda, …; default: a GPU if present")
    parser.add_argument("--seed", type=int, default=0)


def _retrieval(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    from vatt.results import Results
    from vatt.retrieval_sets import read_retrieval_set
    from vatt.zero_shot_retrieval import embed_items, evaluation_plan

    data = read_retrieval_set(
        arguments.data, videos=arguments.videos, split=arguments.split, clips=arguments.clips
    )
    model = _load_model(arguments)
    plan = evaluation_plan(
        model, num_windows=arguments.windows, frame_rate=_frame_rate(arguments, data)
    )
    tables = embed_items(
        model,
        _load_tokenizer(arguments, model),
        data.items,
        plan,
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
    )
    results = Results(
        task="retrieval",
        data_set=data.name,
        protocol={**plan.describe(), "ties": "count half each"},
        data=data.description,
        num_items=len(tables.embeddings),
        num_listed=data.num_listed,
        missing=data.missing,
        unreadable=tables.faults,
        metrics={
            f"{direction}, {averaging}": row
            for averaging, directions in tables.metrics().items()
            for direction, row in directions.items()
        },
        seed=arguments.seed,
    )
    return _report(results, model, arguments, argv)


def _report(
    results: "Results", model: "VATT", arguments: argparse.Namespace, argv: Sequence[str]
) -> int:
    """Prints and writes, in the first process of several."""
    from vatt.ranks import rank
    from vatt.results import results_table, write_results

    if rank() == 0:
        folder = arguments.out or Path("runs") / f"evaluate-{results.task}-{results.data_set}"
        path = write_results(results, model, arguments.model, folder, args=["evaluate", *argv])
        print(results_table(results, model.config.arrangement))
        print(path)
    return 0


def _frame_rate(arguments: argparse.Namespace, data: "EvaluationSet") -> float | None:
    if arguments.frame_rate is not None or data.name == "own":
        return arguments.frame_rate
    return PAPER_FRAME_RATE


def _load_model(arguments: argparse.Namespace) -> "VATT":
    import torch

    from vatt.checkpoint import load_model

    _refuse_numbers(arguments)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and "LOCAL_RANK" in os.environ:
            device = f"cuda:{os.environ['LOCAL_RANK']}"
    return load_model(arguments.model).to(device)


def _refuse_numbers(arguments: argparse.Namespace) -> None:
    for name, least in (("windows", 1), ("batch_size", 1), ("workers", 0)):
        if getattr(arguments, name) < least:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} must be at least {least}, got {getattr(arguments, name)}")
    if arguments.frame_rate is not None and not arguments.frame_rate > 0:
        raise UserError(f"--frame-rate must be positive, got {arguments.frame_rate}")


def _load_tokenizer(arguments: argparse.Namespace, model: "VATT") -> "Tokenizer | None":
    """The one named, else that beside the model; None for a model without text."""
    from vatt.text import Tokenizer

    if "text" not in model.config.modalities:
        return None
    if arguments.tokenizer is not None:
        return Tokenizer.load(arguments.tokenizer)
    # a run keeps its checkpoints in a folder of their own, the tokenizer above it
    folders = [arguments.model, *arguments.model.absolute().parents[:2]]
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.load(folder / "tokenizer.json")
    raise UserError(
        f"{arguments.model} has no tokenizer.json, which says what its word ids stand for: give "
        "--tokenizer"
    )


@contextlib.contextmanager
def _process_group() -> Iterator[None]:
    """Of the processes that torchrun has started, if it has: they share the clips."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    import torch.distributed as dist

    # tables of numbers travel, no gradients: gloo does on any device
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
