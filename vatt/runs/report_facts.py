"""Facts of a run for its report: curves, settings, machine, and how far it has gone."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vatt.config.shipped import read_settings
from vatt.models.run_folder import last_checkpoint
from vatt.models.training_facts import (
    METRICS,
    TrainingFacts,
    inner_settings,
    last_config,
    read_metrics,
    read_run,
    short_path,
)
from vatt.pages.templates import duration

Rows = Sequence[Mapping[str, str]]


def run_parts(run: Path, checkpoint: Path | None = None) -> dict[str, Any]:
    """Fields of `ReportData` about a run: `history`, `summary`, `facts` and `listings`.

    Args:
        run: Run folder.
        checkpoint: Checkpoint that the report is about. None: the last one.

    Raises:
        UserError: there is no run, or its files are damaged.
    """
    facts = read_run(run, checkpoint)
    history, settings = read_metrics(run / METRICS)[1], read_settings(last_config(run))
    figures = training_figures(history)
    summary = {"Steps": f"{facts['steps']:,}"} if "steps" in facts else {}
    if figures["seconds"]:
        summary["Trained for"] = duration(figures["seconds"])
    versions = {"seed": str(facts["seed"])} if "seed" in facts else {}
    versions |= facts.get("versions", {})
    if "git_commit" in facts:
        versions["commit"] = facts["git_commit"][:12]
    return {
        "history": history,
        "summary": summary,
        "facts": {
            "Training": _training(facts, figures),
            "Machine": {"devices": ", ".join(facts.get("devices", ["unknown"])), **versions},
        },
        "listings": {
            "Settings": yaml.safe_dump(_without_folders(settings), sort_keys=False, width=100)
        },
    }


def _training(facts: TrainingFacts, figures: Mapping[str, float]) -> dict[str, str]:
    """Settings and speed of the training, in words."""
    values = {
        "configuration": ", ".join(facts.get("configs", [])),
        "steps": f"{facts['steps']:,}" if "steps" in facts else "",
        "clips per step": f"{facts['batch_size']:,}" if "batch_size" in facts else "",
        "optimiser": facts.get("optimizer"),
        "learning rate": f"{facts['learning_rate']:g}" if "learning_rate" in facts else "",
        "precision": facts.get("precision"),
        "started from": facts.get("started_from"),
        "time in steps": duration(figures["seconds"]) if figures["seconds"] else "",
    }
    if figures["seconds"]:
        values["clips per second"] = f"{figures['clips_per_second']:.3g}"
        values["waiting for data"] = f"{figures['data_wait_share']:.1%}"
    return {name: str(value) for name, value in values.items() if value}


def _without_folders(settings: Any) -> Any:
    """Settings whose absolute paths are cut to their ends: a report is shared."""
    if isinstance(settings, dict):
        return {name: _without_folders(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [_without_folders(value) for value in settings]
    is_path = isinstance(settings, str) and settings.startswith("/")
    return short_path(settings) if is_path else settings


def training_figures(history: Iterable[Mapping[str, str]]) -> dict[str, float]:
    """Steps, their seconds, clips per second and share of time waiting for data.

    Args:
        history: Rows of `metrics.csv`, of which each with a speed stands for the steps since the
            one before it.
    """
    rows = [row for row in history if row.get("perf/step_seconds")]
    if not rows:
        return dict.fromkeys(("steps", "seconds", "clips_per_second", "data_wait_share"), 0.0)
    ends = np.array([float(row["step"]) + 1 for row in rows])  # rows count from 0
    seconds = np.array([float(row["perf/step_seconds"]) for row in rows])

    def mean(name: str) -> float:
        return float(np.average([float(row[f"perf/{name}"]) for row in rows], weights=seconds))

    return {
        "steps": float(ends[-1]),
        "seconds": float((np.diff(ends, prepend=0.0) * seconds).sum()),
        "clips_per_second": mean("clips_per_second"),
        "data_wait_share": mean("data_wait_share"),
    }


def progress_notes(run: Path, checkpoint: Path | None, history: Rows) -> list[str]:
    """Sentences about what a run lacks because it has not gone so far.

    Args:
        run: Run folder.
        checkpoint: Checkpoint that the report is about. None: there is none yet.
        history: Rows of `metrics.csv`.
    """
    notes = []
    if checkpoint is None:
        notes.append(
            "The run has no checkpoint yet, so nothing can be searched: write the report again "
            "when there is one."
        )
    if not history:
        notes.append(f"The run has no rows in {METRICS} yet: its curves are left out.")
    elif not any(name.startswith("val/") for row in history for name in row):
        notes.append("The run has not been validated: curves of retrieval are left out.")
    settings = read_settings(last_config(run))
    planned = inner_settings(settings, "trainer").get("max_steps")
    in_time = inner_settings(settings, "run").get("time_budget_seconds")
    steps = read_run(run, last_checkpoint(run)).get("steps")
    if steps and planned and not in_time and steps < planned:
        notes.append(f"The run is not finished: step {steps:,} of {planned:,}.")
    return notes
