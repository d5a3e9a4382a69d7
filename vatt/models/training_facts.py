"""Facts of a run folder about the model that it trained, as plain values for a model card.

Unknown facts are left out; nothing is guessed.
"""

import csv
import math
import os
import shlex
from pathlib import Path
from typing import Any, TypedDict, cast

from vatt.config.shipped import config_paths, read_settings
from vatt.errors import UserError
from vatt.models.checkpoint import read_steps
from vatt.models.hub import model_path
from vatt.models.run_folder import RUN_CONFIG, is_run, last_checkpoint, model_in
from vatt.system.files import read_json

METRICS = "metrics.csv"
DECIMALS = 4  # of metrics: float32 has no more to say
FEWEST_CLIPS = 100_000  # judged, not measured: a twentieth of AudioSet, the smaller published set
VERSIONS = ("vatt", "torch", "python")


class TrainingFacts(TypedDict, total=False):
    """Known facts of a run, as stored in the head of a model card."""

    configs: list[str]  # names of its configurations
    data: list[dict[str, Any]]  # `name` of each training set, and number of `clips` if known
    steps: int  # of the optimiser
    batch_size: int  # clips per step over all devices
    started_from: str  # model that gave the initial weights
    optimizer: str
    learning_rate: float  # the highest
    precision: str
    seed: int
    devices: list[str]
    versions: dict[str, str]  # of packages
    git_commit: str
    validation: dict[str, float]  # last metrics by name
    validation_set: str
    validation_step: int  # step of the last validation


def find_model(source: str | os.PathLike[str]) -> tuple[Path, Path | None]:
    """Finds a model and its run.

    Args:
        source: Model folder, checkpoint, run folder (its best checkpoint, else its last), or
            `org/name` on the Hub.

    Returns:
        A folder or checkpoint, and the run folder if it is known.

    Raises:
        CheckpointError: there is no model at `source`.
    """
    if is_run(Path(source)):
        return model_in(source), Path(source)
    path = model_path(source)
    run = path.absolute().parent.parent
    return path, run if path.is_file() and is_run(run) else None


def read_run(
    run: str | os.PathLike[str], checkpoint: str | os.PathLike[str] | None = None
) -> TrainingFacts:
    """Reads the facts of a checkpoint from its run folder.

    Args:
        run: Run folder of `vatt fit`; the settings of its last resume are used.
        checkpoint: Checkpoint to describe; metrics measured after it are left out. None: the last
            one of the run.

    Raises:
        UserError: there is no run, or its configuration is damaged.
    """
    folder = Path(run)
    path = last_config(folder)
    config = read_settings(path)
    trained = Path(checkpoint or last_checkpoint(folder))
    steps = read_steps(trained) if trained.is_file() else None
    facts: dict[str, Any] = {
        **_facts_of_config(config),
        **_facts_of_environment(folder / "environment.json"),
        **_facts_of_environment(path.with_name(path.name.replace("config", "environment", 1))),
        "steps": steps,
        **_validation(folder / METRICS, steps),
    }
    return cast(TrainingFacts, {k: v for k, v in facts.items() if v not in (None, [], {})})


def last_config(run: Path) -> Path:
    """Configuration of a run, or of its last resume.

    Raises:
        UserError: there is no run.
    """
    path = max(run.glob("config*.yaml"), key=_number_of_resume, default=run / RUN_CONFIG)
    if not path.is_file():
        raise UserError(f"{run} is no run folder: {RUN_CONFIG} is missing")
    return path


def few_clips_warning(facts: TrainingFacts) -> str | None:
    """Warning about a model that was trained on few clips.

    Returns:
        One line. None if the clips are enough, if their number is unknown, or if training started
        from another model, which has seen clips of its own.
    """
    sets = facts.get("data", [])
    if "started_from" in facts or not sets or not all("clips" in one for one in sets):
        return None
    total = sum(one["clips"] for one in sets)
    if total >= FEWEST_CLIPS:
        return None
    return (
        f"the model was trained on {total:,} clips, fewer than {FEWEST_CLIPS:,}: it knows only "
        "what these show, and its hits elsewhere are guesses"
    )


def _number_of_resume(config: Path) -> int:
    """0 of `config.yaml`, 2 of `config.resume-2.yaml`."""
    return int("0" + "".join(c for c in config.stem if c.isdigit()))


def _facts_of_config(config: dict[str, Any]) -> dict[str, Any]:
    data, module = (inner_settings(config, name, "init_args") for name in ("data", "model"))
    train = data.get("train") or []  # a name, a list, or a mapping to weights
    return {
        "data": [
            _training_set(str(name)) for name in ([train] if isinstance(train, str) else train)
        ],
        "batch_size": data.get("batch_size"),
        "started_from": short_path(module.get("init_from")),
        "optimizer": inner_settings(module, "optimizer").get("name"),
        "learning_rate": inner_settings(module, "optimizer").get("learning_rate"),
        "precision": inner_settings(config, "trainer").get("precision"),
        "seed": config.get("seed_everything"),
        "validation_set": short_path(data.get("validation")),
    }


def inner_settings(values: Any, *keys: str) -> dict[str, Any]:
    """Nested settings; empty if absent."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def short_path(path: Any) -> str | None:
    """An address, or only the end of a path, so that a card reveals nothing about the machine."""
    if not isinstance(path, str):
        return None
    return path if "://" in path else "/".join(Path(path).parts[-2:])


def _training_set(name: str) -> dict[str, Any]:
    shards = sorted(Path(name).glob("*.tar"))
    # only with all indexes at hand: to make them takes a pass over all tars
    if not shards or not all(shard.with_name(shard.name + ".index").is_file() for shard in shards):
        return {"name": short_path(name)}
    from vatt.shards.shard_set import ShardSet

    return {"name": short_path(name), "clips": len(ShardSet(name))}


def _facts_of_environment(path: Path) -> dict[str, Any]:
    """Facts in `environment.json`; empty without it."""
    path = path.with_suffix(".json")
    if not path.is_file():
        return {}
    environment = read_json(path)
    if not isinstance(environment, dict):
        raise UserError(f"{path} is not the environment of a run: delete it, or give another run")
    command = shlex.split(str(environment.get("command") or ""))
    facts = {
        # a resumed run is given its own config.yaml, which says nothing by its name
        "configs": [one.stem for one in config_paths(command) if one.name != RUN_CONFIG],
        "devices": environment.get("devices"),
        "versions": {n: str(environment[n]) for n in VERSIONS if environment.get(n)},
        "git_commit": environment.get("git_commit"),
    }
    return {name: value for name, value in facts.items() if value}


def read_metrics(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of `metrics.csv`, without empty cells; no rows if the file is missing."""
    if not path.exists():
        return ["step"], []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = [{k: v for k, v in row.items() if v} for row in reader]
        return list(reader.fieldnames or ["step"]), rows


def _validation(path: Path, steps: int | None) -> dict[str, Any]:
    """Last row of `metrics.csv` with a validation metric.

    Args:
        path: File, whose steps count from 0.
        steps: Steps of the checkpoint; later rows are skipped. None: unknown.
    """
    try:
        for row in reversed(read_metrics(path)[1]):
            step = int(row.get("step", -1))
            measured = {
                name.removeprefix("val/"): round(float(value), DECIMALS)
                for name, value in row.items()
                if name.startswith("val/") and math.isfinite(float(value))
            }
            if measured and step >= 0 and (steps is None or step < steps):
                return {"validation": measured, "validation_step": step + 1}
    except (TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is not the metrics of a run: {error}") from error
    return {}
