"""`vatt evaluate retrieval | linear | zero-shot | mteb`: one short function each."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vatt.commands.evaluate_mteb import add_mteb, evaluate_mteb
from vatt.errors import UserError
from vatt.system.machine import num_cores

if TYPE_CHECKING:
    from vatt.evaluation.results import Results
    from vatt.network.model import VATT
    from vatt.preprocess.tokenizer import Tokenizer
    from vatt.sets.items import EvaluationSet

PAPER_FRAME_RATE = 12.5  # every second frame of 25, to which published numbers belong


def evaluate(argv: Sequence[str]) -> int:
    """`vatt evaluate TASK MODEL --data DATA`."""
    parser = argparse.ArgumentParser(
        "vatt evaluate", description="Measures a model by the published protocols."
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    _add_retrieval(tasks)
    _add_linear(tasks)
    _add_zero_shot(tasks)
    add_mteb(tasks)
    arguments = parser.parse_args(argv)

    from vatt.system.ranks import num_processes, process_group

    if arguments.task == "retrieval":
        with process_group():
            return _retrieval(arguments, argv)
    if num_processes() > 1:
        raise UserError(f"evaluate {arguments.task} runs in one process: start it without torchrun")
    run = {"linear": _linear, "zero-shot": _zero_shot, "mteb": evaluate_mteb}[arguments.task]
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


def _add_linear(tasks: Any) -> None:
    parser = tasks.add_parser("linear", help="classifiers on frozen features")
    _add_classification(parser)
    parser.add_argument(
        "--classifiers",
        type=lambda names: names.split(","),
        default=["low-rank", "logistic"],
        help="low-rank (the paper's) and logistic (scikit-learn's), with a comma; default both",
    )
    parser.add_argument("--steps", type=int, default=50_000, help="of low-rank; default 50,000")
    parser.add_argument(
        "--regularisation", type=float, default=1.0, help="C of logistic regression, default 1"
    )
    parser.add_argument(
        "--cache", type=Path, help="folder that keeps features; default OUT/features"
    )


def _add_zero_shot(tasks: Any) -> None:
    parser = tasks.add_parser("zero-shot", help="classes by what prompts say of them")
    _add_classification(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        help="with {} for the class, such as 'a video of {}'; several are averaged; default {}",
    )
    parser.add_argument("--tokenizer", type=Path, help="default: the tokenizer.json of the model")


def _add_classification(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder of UCF101's or HMDB51's lists, esc50.csv, or a csv with file,label,split|fold",
    )
    parser.add_argument("--media", type=Path, required=True, help="folder of the files named there")
    parser.add_argument(
        "--modality",
        choices=("video", "audio"),
        help="default: audio for ESC-50, else video",
    )


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
    from vatt.evaluation.results import Results
    from vatt.evaluation.zero_shot_retrieval import embed_items, evaluation_plan
    from vatt.sets.retrieval import read_retrieval_set

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
    return _report(results, model, _out(arguments, "retrieval", data), arguments, argv)


def _linear(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    from vatt.evaluation.frozen_features import extract_features
    from vatt.evaluation.linear import CLASSIFIERS, LowRankConfig, evaluate_folds
    from vatt.evaluation.results import Results
    from vatt.evaluation.zero_shot_retrieval import evaluation_plan
    from vatt.models.checkpoint import weights_digest
    from vatt.sets.classification import MODALITIES, read_classification_set

    unknown = set(arguments.classifiers) - set(CLASSIFIERS)
    if unknown or arguments.steps < 1 or not arguments.regularisation > 0:
        raise UserError(
            f"--classifiers are {' and '.join(CLASSIFIERS)}, --steps at least 1 and "
            f"--regularisation positive, got {', '.join(arguments.classifiers)}, "
            f"{arguments.steps} and {arguments.regularisation}"
        )
    data = read_classification_set(arguments.data, arguments.media)
    modality: Literal["video", "audio"] = arguments.modality or MODALITIES.get(data.name, "video")
    model = _load_model(arguments)
    plan = evaluation_plan(
        model,
        num_windows=arguments.windows,
        frame_rate=_frame_rate(arguments, data),
        modalities=[modality],
    )
    features = extract_features(
        model,
        data.items,
        plan,
        modality=modality,
        digest=weights_digest(model),
        cache=arguments.cache or _out(arguments, "linear", data) / "features",
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
    )
    low_rank = LowRankConfig(num_steps=arguments.steps)
    metrics = evaluate_folds(
        features,
        data.labels,
        arguments.classifiers,
        low_rank=low_rank,
        regularisation=arguments.regularisation,
        seed=arguments.seed,
    )
    classifiers: dict[str, Any] = {"low-rank": asdict(low_rank)}
    classifiers["logistic"] = {"regularisation": arguments.regularisation}
    chosen = {name: classifiers[name] for name in arguments.classifiers}
    results = Results(
        task="linear",
        data_set=data.name,
        protocol={"modality": modality, **plan.describe(), "classifiers": chosen},
        data=data.description,
        num_items=len(features.items),
        num_listed=data.num_listed,
        missing=data.missing,
        unreadable=features.faults,
        metrics=metrics,
        seed=arguments.seed,
    )
    return _report(results, model, _out(arguments, "linear", data), arguments, argv)


def _zero_shot(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    from vatt.evaluation.results import Results
    from vatt.evaluation.zero_shot_classification import PROMPTS, embed_classes, score_classes
    from vatt.evaluation.zero_shot_retrieval import evaluation_plan
    from vatt.sets.classification import MODALITIES, TEST, read_classification_set

    data = read_classification_set(arguments.data, arguments.media).in_split(TEST)
    modality: Literal["video", "audio"] = arguments.modality or MODALITIES.get(data.name, "video")
    model = _load_model(arguments)
    tokenizer = _load_tokenizer(arguments, model)
    if tokenizer is None:
        raise UserError("zero-shot classification needs a model with text")
    plan = evaluation_plan(
        model,
        num_windows=arguments.windows,
        frame_rate=_frame_rate(arguments, data),
        modalities=[modality],
    )
    prompts = arguments.prompt or list(PROMPTS)
    classes = data.labels
    scores = score_classes(
        model,
        data.items,
        embed_classes(model, tokenizer, classes, prompts),
        plan,
        modality=modality,
        num_workers=arguments.workers,
    )
    results = Results(
        task="zero-shot",
        data_set=data.name,
        protocol={"modality": modality, **plan.describe(), "prompts": prompts},
        data={**data.description, "num_classes": len(classes)},
        num_items=len(scores.items),
        num_listed=data.num_listed,
        missing=data.missing,
        unreadable=scores.faults,
        metrics=scores.metrics(classes),
        seed=arguments.seed,
    )
    return _report(results, model, _out(arguments, "zero-shot", data), arguments, argv)


def _out(arguments: argparse.Namespace, task: str, data: "EvaluationSet") -> Path:
    return arguments.out or Path("runs") / f"evaluate-{task}-{data.name}"


def _report(
    results: "Results",
    model: "VATT",
    folder: Path,
    arguments: argparse.Namespace,
    argv: Sequence[str],
) -> int:
    """Prints and writes, in the first process of several."""
    from vatt.evaluation.results import results_table, write_results
    from vatt.system.ranks import rank

    if rank() == 0:
        path = write_results(results, model, arguments.model, folder, args=["evaluate", *argv])
        print(results_table(results, model.config.arrangement))
        print(path)
    return 0


def _frame_rate(arguments: argparse.Namespace, data: "EvaluationSet") -> float | None:
    if arguments.frame_rate is not None or data.name == "own":
        return arguments.frame_rate
    return PAPER_FRAME_RATE


def _load_model(arguments: argparse.Namespace) -> "VATT":
    from vatt.models.checkpoint import load_model
    from vatt.system.device import choose_device

    _refuse_numbers(arguments)
    return load_model(arguments.model).to(choose_device(arguments.device))


def _refuse_numbers(arguments: argparse.Namespace) -> None:
    for name, least in (("windows", 1), ("batch_size", 1), ("workers", 0)):
        if getattr(arguments, name) < least:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} must be at least {least}, got {getattr(arguments, name)}")
    if arguments.frame_rate is not None and not arguments.frame_rate > 0:
        raise UserError(f"--frame-rate must be positive, got {arguments.frame_rate}")


def _load_tokenizer(arguments: argparse.Namespace, model: "VATT") -> "Tokenizer | None":
    """The one named, else that beside the model; None for a model without text."""
    from vatt.models.checkpoint import tokenizer_of
    from vatt.preprocess.tokenizer import Tokenizer

    if "text" not in model.config.modalities:
        return None
    if arguments.tokenizer is not None:
        return Tokenizer.load(arguments.tokenizer)
    tokenizer = tokenizer_of(arguments.model)
    if tokenizer is not None:
        return tokenizer
    raise UserError(
        f"{arguments.model} has no tokenizer.json, which says what its word ids stand for: give "
        "--tokenizer"
    )
