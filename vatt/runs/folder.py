"""Files of a run, and the record of its configuration and environment."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from vatt.config.shipped import config_paths
from vatt.errors import UserError
from vatt.models.run_folder import (
    BEST_CHECKPOINT,
    CHECKPOINTS,
    LAST_CHECKPOINT,
    PREVIOUS_CHECKPOINT,
    last_checkpoint,
)
from vatt.runs.loggers import RunWandb
from vatt.system.environment import describe_environment
from vatt.system.files import write_atomically


def config_path(folder: Path, *, resumes: bool) -> Path:
    """Configuration file of a new run, or of the next resume of a run."""
    number = len(list(folder.glob("config.resume-*.yaml"))) + 1
    return folder / (f"config.resume-{number}.yaml" if resumes else "config.yaml")


class RunRecord(SaveConfigCallback):
    """Writes configuration and environment into the run folder, and sends both to W&B.

    Args:
        parser: Parser of the command.
        config: Parsed configuration.
        path: File for the configuration; the environment is written beside it with a similar name.
        args: Arguments of the `vatt` command.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Any, *, path: Path, args: Sequence[str]
    ) -> None:
        super().__init__(parser, config, config_filename=str(path), save_to_log_dir=False)
        self._path = path
        self._args = args

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes both files on rank zero, after the data was found."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config["ckpt_path"] = None  # a configuration says what to train, not where to go on
        self.parser.save(config, str(self._path), skip_none=False, overwrite=True)
        environment = describe_environment(self._args, world_size=trainer.world_size)
        text = json.dumps(environment, indent=2, ensure_ascii=False)
        name = self._path.name.replace("config", "environment", 1)
        write_atomically(self._path.with_name(name).with_suffix(".json"), f"{text}\n".encode())
        recorded = {**yaml.safe_load(self._path.read_text()), "environment": environment}
        for logger in trainer.loggers:
            if isinstance(logger, RunWandb):
                logger.log_config(recorded)


def choose_run_dir(
    given: str | None, ckpt_path: str | None, args: Sequence[str], *, new: bool
) -> Path | None:
    """Chooses the run folder: the given one, that of the checkpoint, or a new one."""
    if given is not None:
        folder = Path(given)
        if new and not ckpt_path and last_checkpoint(folder).exists():
            raise UserError(
                f"{folder} already holds a run: go on with it by --ckpt_path last, or give another "
                "--run.dir"
            )
        return folder
    if ckpt_path and Path(ckpt_path).parent.name == CHECKPOINTS:
        return Path(ckpt_path).parent.parent
    if not new:
        return None
    if ckpt_path in ("last", "best"):
        raise UserError(
            f"--ckpt_path {ckpt_path} needs --out (--run.dir), or the config.yaml of the run", 2
        )
    return _new_run_dir(args)


def _new_run_dir(args: Sequence[str]) -> Path:
    """`runs/<configuration>-<time>`, the same for processes that this one starts."""
    if "VATT_RUN_DIR" in os.environ and "LOCAL_RANK" in os.environ:
        return Path(os.environ["VATT_RUN_DIR"])
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        raise UserError("several processes need the same run directory: give --run.dir", 2)
    configs = config_paths(args)
    name = configs[0].stem if configs else "run"
    folder = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    os.environ["VATT_RUN_DIR"] = str(folder)
    return folder


def find_checkpoint(ckpt_path: str | None, run_dir: Path | None, subcommand: str) -> Path | None:
    """Checkpoint to load; None: random or initial weights."""
    if ckpt_path is None and subcommand == "fit":
        return None
    advice = "give --ckpt_path FILE of one that exists"
    if ckpt_path not in (None, "last", "best"):
        path = Path(str(ckpt_path))
    elif run_dir is None:
        raise UserError(f"{subcommand} needs trained weights: give --ckpt_path FILE", 2)
    elif ckpt_path == "best":
        path = run_dir / CHECKPOINTS / BEST_CHECKPOINT
        advice = "training keeps the best one by the metric that run.keep_checkpoints.best_by names"
    else:
        path = last_checkpoint(run_dir)
        if ckpt_path == "last" and subcommand == "fit" and not path.exists():
            print(f"no checkpoint in {run_dir} yet: starting from the beginning", file=sys.stderr)
            return None
        if path.name == PREVIOUS_CHECKPOINT:
            missing = f"{path.with_name(LAST_CHECKPOINT)} is missing or damaged"
            print(f"{missing}: using {path}, the one before it", file=sys.stderr)
    if not path.is_file():
        raise UserError(f"no checkpoint {path}: {advice}", 2)
    return path
