"""`vatt evaluate mteb`: tasks of the `mteb` library; results are written as of other protocols."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vatt.errors import Fault, MediaError, UserError

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.results import TaskResult

    from vatt.mteb_model import MtebModel
    from vatt.results import Results

SPACES = ("auto", "vt", "va", "joint", "features")


def add_mteb(tasks: Any) -> None:
    """The options of the command."""
    parser = tasks.add_parser("mteb", help="tasks of the mteb library, downloaded by their names")
    parser.add_argument("model", help="model folder, .ckpt of a run, or org/name on the Hub")
    parser.add_argument("--tasks", nargs="+", required=True, help="names, such as ESC50 MSRVTTT2V")
    parser.add_argument("--out", type=Path, help="folder; default runs/evaluate-mteb")
    parser.add_argument("--windows", type=int, default=4, help="of each file, evenly spread")
    parser.add_argument(
        "--space",
        choices=SPACES,
        default="auto",
        help="default: what the modalities of a task share; features: of the backbone",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="windows embedded at once")
    parser.add_argument("--device", default="auto", help="cpu, cuda, …; default: a GPU if present")
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="files that cannot be read count as like nothing, with a warning; default: stop",
    )


def evaluate_mteb(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    """`vatt evaluate mteb MODEL --tasks NAME …`."""
    from vatt.mteb_model import MtebModel, load_mteb
    from vatt.results import results_table, write_results

    for option, value in (("windows", arguments.windows), ("batch-size", arguments.batch_size)):
        if value < 1:
            raise UserError(f"--{option} must be at least 1, got {value}")
    mteb = load_mteb()
    try:
        tasks = [mteb.get_task(name) for name in dict.fromkeys(arguments.tasks)]
    except KeyError as error:
        raise UserError(f"--tasks: {error.args[0].removeprefix('KeyError: ')}") from error
    model = MtebModel.from_pretrained(
        arguments.model,
        space=None if arguments.space == "features" else arguments.space,
        num_windows=arguments.windows,
        on_error="skip" if arguments.skip_unreadable else "raise",
        device=arguments.device,
    )
    folder = arguments.out or Path("runs") / "evaluate-mteb"
    results = run_tasks(model, tasks, folder, batch_size=arguments.batch_size)
    vatt_model = model.extractor.model
    path = write_results(results, vatt_model, arguments.model, folder, args=["evaluate", *argv])
    print(results_table(results, vatt_model.config.arrangement))
    print(path)
    return 0


def run_tasks(
    model: "MtebModel", tasks: Sequence["AbsTask"], folder: Path, *, batch_size: int = 8
) -> "Results":
    """Runs tasks; what is done lies in `folder/mteb` in mteb's own form, and is not done again.

    Args:
        model: What is evaluated.
        tasks: Of mteb.
        folder: For the results.
        batch_size: Windows or texts encoded at a time.

    Returns:
        Main scores in percent; tasks whose data cannot be had are `missing`.

    Raises:
        UserError: no task could be run, or the model lacks the modalities of one.
        MediaError: a file cannot be read, unless the model skips those.
    """
    from vatt.mteb_model import load_mteb
    from vatt.results import Results

    mteb = load_mteb()
    _refuse_modalities(model, tasks)
    metrics: dict[str, dict[str, float]] = {}
    missing: list[Fault] = []
    for task in tasks:
        try:
            metrics |= _rows(task, _run(model, task, folder / "mteb", batch_size))
        except (ConnectionError, FileNotFoundError, ImportError) as error:
            # the data set is not to be had, or mteb itself decodes it and lacks a package for that
            missing.append(Fault(task.metadata.name, " ".join(str(error).split())))
    if len(missing) == len(tasks):
        reasons = "; ".join(str(fault) for fault in missing)
        raise UserError(f"no task could be run: {reasons}")
    return Results(
        task="mteb",
        data_set="mteb",
        protocol={
            "num_windows": model.num_windows,
            "space": model.space,
            "on_error": model.on_error,
            "mteb": mteb.__version__,
        },
        data={"tasks": [task.metadata.name for task in tasks]},
        num_items=len(tasks) - len(missing),
        num_listed=len(tasks),
        unit="tasks",
        missing=missing,
        metrics=metrics,
    )


def _refuse_modalities(model: "MtebModel", tasks: Sequence["AbsTask"]) -> None:
    for task in tasks:
        lacking = [name for name in task.metadata.modalities if name not in model.modalities]
        if lacking:
            raise UserError(
                f"{task.metadata.name} needs {' and '.join(lacking)}, the model has "
                f"{', '.join(model.modalities)}: leave that task out"
            )


def _run(model: "MtebModel", task: "AbsTask", cache: Path, batch_size: int) -> "TaskResult":
    """The result of one task, from the cache if it is there."""
    import mteb

    try:
        results = mteb.evaluate(
            cast(Any, model),  # mteb's protocol asks for its own constructor, which it never calls
            task,
            cache=mteb.ResultCache(cache),
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": True},
            co2_tracker=False,
        )
    except MediaError as error:
        raise UserError(f"{task.metadata.name}: {error} (--skip-unreadable goes on)") from error
    return results.task_results[0]


def _rows(task: "AbsTask", result: "TaskResult") -> dict[str, dict[str, float]]:
    """Rows of the table: the main score of each split and subset, in percent."""
    rows: dict[str, dict[str, float]] = {}
    for split, subsets in result.scores.items():
        for scores in subsets:
            subset = scores["hf_subset"]
            parts = [task.metadata.name, split, *([] if subset == "default" else [subset])]
            rows[", ".join(parts)] = {task.metadata.main_score: 100 * scores["main_score"]}
    return rows
