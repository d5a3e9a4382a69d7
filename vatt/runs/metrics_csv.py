"""The metrics of a run as a csv file."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from vatt.models.training_facts import METRICS, read_metrics
from vatt.system.csv_rows import write_rows


class MetricsCsv(Logger):
    """Logger that writes one row per logged step to `metrics.csv`: `step`, then the metrics.

    Rows are on disk as soon as they are logged. A resumed run appends to the file; rows of repeated
    steps are replaced.

    Args:
        folder: Run folder.
    """

    name = version = ""  # the run folder is the whole path
    save_dir = ""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.save_dir = str(folder)
        self.path = folder / METRICS
        self._rows: list[dict[str, str]] = []
        self._columns = ["step"]
        self._opened = False

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: config.yaml has the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds metrics to the row of a step."""
        step = step or 0
        if not self._opened:
            self._open(step)
        values = {name: repr(float(v)) for name, v in metrics.items() if name != "epoch"}
        if not values:
            return
        merges = bool(self._rows) and int(self._rows[-1]["step"]) == step
        if merges:
            self._rows[-1].update(values)
        else:
            self._rows.append({"step": str(step), **values})
        new = [name for name in values if name not in self._columns]
        self._columns += new
        if merges or new:
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(self._rows[-1])

    def _open(self, step: int) -> None:
        self._opened = True
        self._columns, rows = read_metrics(self.path)
        self._rows = [row for row in rows if int(row["step"]) < step]
        self._rewrite()

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [[row.get(name, "") for name in self._columns] for row in self._rows]
        write_rows(self.path, [self._columns, *rows])
