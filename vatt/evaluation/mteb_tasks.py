"""Tasks of the `mteb` library, with results in the form of the other protocols."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vatt.errors import Fault, MediaError, UserError

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.results import TaskResult

    from vatt.evaluation.mteb_model import MtebModel
    from vatt.evaluation.results import Results


def run_tasks(
    model: "MtebModel", tasks: Sequence["AbsTask"], folder: Path, *, batch_size: int = 8
) -> "Results":
    """Runs tasks of mteb; finished tasks are stored in `folder/mteb` and not run again.

    Args:
        model: The model to evaluate.
        tasks: Tasks of mteb.
        folder: Folder of the results.
        batch_size: Windows or texts per batch.

    Returns:
        Main scores in percent; tasks without data are `missing`.

    Raises:
        UserError: no task could be run, or the model lacks the modalities of a task.
        MediaError: a file cannot be read, unless the model skips those.
    """
    from vatt.evaluation.mteb_model import load_mteb
    from vatt.evaluation.results import Results

    mteb = load_mteb()
    for task in tasks:
        lacking = [name for name in task.metadata.modalities if name not in model.modalities]
        if lacking:
            raise UserError(
                f"{task.metadata.name} needs {' and '.join(lacking)}, the model has "
                f"{', '.join(model.modalities)}: leave that task out"
            )
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


def _run(model: "MtebModel", task: "AbsTask", cache: Path, batch_size: int) -> "TaskResult":
    """Result of one task, from the cache if possible."""
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
