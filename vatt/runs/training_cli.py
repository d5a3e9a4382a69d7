"""`vatt fit / validate / test / predict`: LightningCLI with a run folder and short errors."""

import logging
import os
import shlex
import sys
import traceback
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch.nn.parallel import DistributedDataParallel

from vatt.config.geometry import MODALITIES
from vatt.config.shipped import given_values, with_config_paths
from vatt.errors import UserError, VattError
from vatt.models.checkpoint import TOKENIZER, find_tokenizer
from vatt.models.run_folder import CHECKPOINTS
from vatt.runs.checkpoint import (
    AtomicCheckpointIO,
    BestCheckpoint,
    KeepCheckpoints,
    RunCheckpoint,
)
from vatt.runs.classifier_defaults import training_set, with_classifier
from vatt.runs.data_package import refuse_other_package
from vatt.runs.data_report import DataReport
from vatt.runs.explain import explain
from vatt.runs.folder import RunRecord, choose_run_dir, config_path, find_checkpoint
from vatt.runs.loggers import (
    RunWandb,
    WandbMode,
    check_packages,
    tensorboard_logger,
    wandb_mode,
)
from vatt.runs.media_log import MediaLog
from vatt.runs.metrics_csv import MetricsCsv
from vatt.runs.moved import keep_old_class_paths
from vatt.runs.open_model_defaults import (
    OpenModelExport,
    is_open_model,
    tokenizer_source,
    with_open_model,
)
from vatt.runs.progress import TrainingProgress, fit_summary, metric_lines, more_training
from vatt.runs.run_length import run_length
from vatt.runs.steps import EndOfRun, StepClock, StepSeed, TimeBudget
from vatt.runs.stopping import StopOnSignal
from vatt.runs.weight_average import WeightAverage
from vatt.system.files import NO_SPACE, no_space
from vatt.system.ranks import HANG_MINUTES, LOST_RANK, is_lost_rank
from vatt.training.open_model import OpenModelModule

# The user writes the left side, and the right side is filled from it. Links to settings that a
# class lacks are ignored.
LINKS = {
    **{f"model.init_args.model.{name}": f"data.init_args.{name}" for name in MODALITIES},
    "model.init_args.model.modalities": "data.init_args.modalities",
    "model.init_args.model.classifier": "data.init_args.classifier",
    "model.init_args.micro_batch_size": "data.init_args.micro_batch_size",
    "trainer.max_steps": "model.init_args.schedule.max_steps",
}


_ARGUMENTS = signature(DistributedDataParallel).parameters
_SYNCS_BUFFERS = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in _ARGUMENTS)
# DDP by default: gradients are not copied into buckets; batch statistics are equal at all ranks
DDP: dict[str, Any] = {
    "gradient_as_bucket_view": True,
    _SYNCS_BUFFERS: False,
    "timeout": timedelta(minutes=HANG_MINUTES),
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Files, logging and end of a run.

    Args:
        dir: Run folder. None: a new one under `runs/`, named by configuration and time.
        time_budget_seconds: Maximum training time. The learning-rate schedule is completed within
            it. None: no limit, only `trainer.max_steps`.
        max_passes: Maximum number of passes over labelled files, where neither steps nor time are
            set beside a shipped configuration. None: no limit.
        checkpoint_every_n_steps: Steps from one write of `checkpoints/last.ckpt` to the next.
        keep_checkpoints: Checkpoints that the run keeps besides it.
        ema_decay: Decay of a moving average of the weights; 0.999 averages over about 1000 steps.
            The averaged weights are validated and stored as the model. None: no average.
        wandb: Mode of Weights & Biases; `auto`: online if there is a key, else offline.
        wandb_project: Project of the W&B run.
        wandb_checkpoints: Whether to upload each checkpoint to W&B as an artifact.
        tensorboard: Whether to write metrics for TensorBoard, too.
        media_every_n_validations: Store some validation clips, with the captions that the model
            finds for them, at every n-th validation (`vatt.runs.media_log`). None: never.
    """

    dir: str | None = None
    time_budget_seconds: float | None = None
    max_passes: int | None = None
    checkpoint_every_n_steps: int = 500
    keep_checkpoints: KeepCheckpoints = KeepCheckpoints()  # noqa: RUF009  # frozen
    ema_decay: float | None = None
    wandb: WandbMode = "auto"
    wandb_project: str = "vatt"
    wandb_checkpoints: bool = False
    tensorboard: bool = False
    media_every_n_validations: int | None = None


class TrainingCLI(LightningCLI):
    """LightningCLI in which every run has its own run folder.

    Args:
        args: Arguments, the subcommand first.
    """

    def __init__(self, args: Sequence[str]) -> None:
        options = {"exit_on_error": False, "allow_abbrev": False}
        self._args = list(args)
        self.clock = StepClock()
        self.best: BestCheckpoint | None = None
        self.export: OpenModelExport | None = None
        self._wandb: RunWandb | None = None
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={
                "max_epochs": -1,
                "num_sanity_val_steps": 1,
                "log_every_n_steps": 10,
                "use_distributed_sampler": False,  # the loaders of vatt split the data themselves
            },
            parser_kwargs={**options, **{name: dict(options) for name in self.subcommands()}},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=self._args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the settings of the run, and links settings that model and data share."""
        parser.add_class_arguments(RunConfig, "run")
        for source, target in LINKS.items():
            parser.link_arguments(source, target)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the arguments; reports an error as one sentence."""
        given = given_values(self._args)
        _refuse_linked_keys(given)
        files = training_set(args[0], given)
        length, self._length_line = run_length(self._args, given, files)
        settings = [f"--{name}={value}" for name, value in length.items()]
        try:
            filled = with_open_model(with_classifier(args, given, files), given)
            self.config = parser.parse_args([*filled, *settings])
        except ArgumentError as error:
            refuse_other_package(str(error))
            raise UserError(explain(str(error), self._known_keys()), 2) from error
        seed = int(self.config[self.config["subcommand"]]["seed_everything"])
        if not 0 <= seed < 2**32:  # what NumPy takes
            raise UserError(f"seed_everything must be from 0 to 2^32 - 1, got {seed}", 2)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: settings in a checkpoint never override those of the user."""

    def before_instantiate_classes(self) -> None:
        """Determines run folder, checkpoint and name of the configuration before any work."""
        run, config = self._of("run"), self.config[self.subcommand]
        fits, start = self.subcommand == "fit", config["ckpt_path"]
        if fits:
            check_packages(run)
        self.run_dir = choose_run_dir(run["dir"], start, self._args, new=fits)
        run["dir"] = None if self.run_dir is None else str(self.run_dir)
        checkpoint = find_checkpoint(start, self.run_dir, self.subcommand or "")
        config["ckpt_path"] = None if checkpoint is None else str(checkpoint)
        config["weights_only"] = True
        self._take_tokenizer(config)
        if fits:
            assert self.run_dir is not None
            self.config_path = config_path(self.run_dir, resumes=checkpoint is not None)
            config_word = shlex.quote(str(self.config_path))
            self.advice = f"go on with: vatt fit --config {config_word} --ckpt_path last"
            self.save_config_callback = RunRecord
            self.save_config_kwargs = {"path": self.config_path, "args": self._args}

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer; reports their errors as errors of the configuration."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError, MisconfigurationException, ArgumentError) as error:
            if (refusal := _refusal_of(error)) is None:
                raise
            raise refusal from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Trainer that writes only into the run folder."""
        config = self._of("trainer")
        plugins = self.config_init[self.subcommand]["trainer"].get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        kwargs |= {"plugins": plugins, "enable_model_summary": False}
        if self.run_dir is not None:
            kwargs["default_root_dir"] = self.run_dir
        # these two have a part in the checkpoint, which every command reads
        callbacks: list[Any] = [StepSeed(int(self._of("seed_everything"))), self.clock]
        if self.subcommand == "fit":
            kwargs["logger"] = self._loggers()
            callbacks += self._fit_callbacks()
            if config.get("enable_progress_bar") is not False:
                callbacks.append(TrainingProgress())
        else:
            kwargs |= {"logger": False, "enable_checkpointing": False}
        self.trainer_defaults["callbacks"] = callbacks
        StrategyRegistry.register("ddp", DDPStrategy, override=True, **DDP)  # also for `auto`
        return super().instantiate_trainer(**kwargs)

    def fit(self, **kwargs: Any) -> None:
        """Trains; ignores reader processes killed by the signal that ends the run."""
        if self._length_line and self.trainer.is_global_zero:
            print(self._length_line, file=sys.stderr)
        with self.stop.listening():
            try:
                self.trainer.fit(**kwargs)
            except (RuntimeError, SystemExit, KeyboardInterrupt) as error:
                if self.stop.asked:  # Lightning exits on Ctrl-C
                    raise self.stop.error(self.trainer) from None
                if is_lost_rank(error):
                    raise UserError(f"{LOST_RANK}; {self.advice}") from error
                raise
            except OSError as error:
                if error.errno in NO_SPACE and self.checkpoint.path.exists():
                    raise UserError(no_space(error, self.advice)) from error
                raise

    def after_fit(self) -> None:
        """Prints a summary of the run."""
        if not self.trainer.is_global_zero:
            return
        if not self.clock.ran:
            more = more_training(self.trainer, self._of("run")["time_budget_seconds"])
            print(f"{self.run_dir} is trained: step {self.trainer.global_step}. More: {more}")
            return
        print(
            fit_summary(
                self.trainer,
                seconds=self.clock.training_seconds,
                checkpoint=self.checkpoint.path,
                best=self.best,
                config=self.config_path,
                time_budget=self._of("run")["time_budget_seconds"],
                wandb_files=None if self._wandb is None else self._wandb.files,
                model=None if self.export is None else self.export.folder,
            )
        )

    def validate(self, **kwargs: Any) -> None:
        """Runs the validation and prints its metrics."""
        self._evaluate("validate", "val", kwargs)

    def test(self, **kwargs: Any) -> None:
        """Runs the test and prints its metrics."""
        self._evaluate("test", "test", kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Writes the predictions for a set into the checkpoint's run folder, else beside it."""
        kwargs["return_predictions"] = True
        parts = self.trainer.predict(**kwargs)
        folder = Path(self._of("ckpt_path")).parent
        folder = folder.parent if folder.name == CHECKPOINTS else folder
        message = self.model.save_predictions(parts, folder)
        if self.trainer.is_global_zero:
            print(message)

    def _evaluate(self, name: str, prefix: str, kwargs: dict[str, Any]) -> None:
        getattr(self.trainer, name)(**{**kwargs, "verbose": False})
        lines = metric_lines(self.trainer.callback_metrics, prefix)
        print("\n".join(lines) or "no metrics: is data.validation set?")

    def _known_keys(self) -> list[str]:
        name = self._args[0] if self._args else ""
        parser = self._subcommand_parsers.get(name)
        return [] if parser is None else list(parser.get_defaults().keys())

    def _of(self, key: str) -> Any:
        return self.config[self.subcommand].get(key)

    def _fit_callbacks(self) -> list[Any]:
        run = self._of("run")
        wandb = self._wandb if run["wandb_checkpoints"] else None
        every, keep = run["checkpoint_every_n_steps"], KeepCheckpoints(**run["keep_checkpoints"])
        assert self.run_dir is not None
        folder = self.run_dir / CHECKPOINTS
        self.checkpoint = RunCheckpoint(folder, every, keep, wandb)
        self.stop = StopOnSignal(self.checkpoint, self.advice)
        callbacks = [DataReport(), self.checkpoint, self.stop]
        if keep.best_by is not None:
            self.best = BestCheckpoint(folder, keep)
            callbacks.append(self.best)
        if run["ema_decay"] is not None:
            callbacks.append(WeightAverage(run["ema_decay"]))
        if isinstance(self.model, OpenModelModule):
            self.export = OpenModelExport()
            callbacks.append(self.export)
        if run["media_every_n_validations"] is not None:
            callbacks.append(MediaLog(run["media_every_n_validations"]))
        if run["time_budget_seconds"] is not None:
            callbacks.append(TimeBudget(self.clock, run["time_budget_seconds"]))
        return [*callbacks, EndOfRun(self.clock)]

    def _take_tokenizer(self, config: Any) -> None:
        """Uses the tokenizer that the initial weights were trained with, unless another is given.

        Raises:
            UserError: the initial weights come without a tokenizer.
        """
        settings = (config["data"] or {}).get("init_args") or {}
        if is_open_model((config["model"] or {}).get("class_path")):
            if settings.get("tokenizer", "") is None:
                settings["tokenizer"] = tokenizer_source(config["model"]["init_args"])
            return
        start = ((config["model"] or {}).get("init_args") or {}).get("init_from")
        resumes, chosen = config["ckpt_path"] is not None, settings.get("tokenizer", "")
        if chosen is not None and not (chosen and resumes and not Path(chosen).is_file()):
            return
        if resumes:
            if self.run_dir is not None and (self.run_dir / TOKENIZER).is_file():
                settings["tokenizer"] = str(self.run_dir / TOKENIZER)
        elif start is not None:
            tokenizer = find_tokenizer(Path(start))
            if tokenizer is None:
                raise UserError(
                    f"{start} has no {TOKENIZER}, which says what its word ids stand for: give "
                    "--data.init_args.tokenizer FILE",
                    2,
                )
            settings["tokenizer"] = str(tokenizer)

    def _loggers(self) -> list[Any]:
        """CSV always, W&B unless it is disabled, and what the configuration adds."""
        assert self.run_dir is not None
        folder = self.run_dir
        loggers: list[Any] = [MetricsCsv(folder)]
        run = self._of("run")
        mode = wandb_mode(run["wandb"])
        if mode != "disabled":
            self._wandb = RunWandb(folder, run["wandb_project"], mode)
            loggers.append(self._wandb)
        if run["tensorboard"]:
            loggers.append(tensorboard_logger(folder))
        added = self.config_init[self.subcommand]["trainer"].get("logger")
        if added and added is not True:
            loggers += added if isinstance(added, list) else [added]
        return loggers


def main(
    args: Sequence[str] | None = None,
    cli: Callable[[Sequence[str]], TrainingCLI] = TrainingCLI,
) -> TrainingCLI:
    """Runs a training command.

    Args:
        args: The subcommand and its arguments; None: those of the process.
        cli: Class that runs it.

    Raises:
        UserError: an error that the user can correct.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):  # its notes; its warnings stay
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 calls what jsonargparse 4.53 and torch 2.13 have deprecated: nothing to act on
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # steps are logged across Lightning's epochs, which are only nominal here
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # frozen parts of open models, and their BatchNorm
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start")
    keep_old_class_paths()
    return cli(with_config_paths(sys.argv[1:] if args is None else args))


def _refusal_of(error: Exception) -> VattError | None:
    """Error that refuses a configuration, without jsonargparse's wrapping; None for a bug."""
    first: BaseException = error
    while first.__context__ is not None and not isinstance(first, VattError):
        first = first.__context__
    if isinstance(first, VattError):
        return first
    *_, (frame, _) = traceback.walk_tb(first.__traceback__)
    is_bug = frame.f_globals["__name__"].startswith(("vatt.", "datamodules."))
    return None if is_bug else UserError(explain(str(error)))


def _refuse_linked_keys(given: Iterable[str]) -> None:
    """Refuses a value for the target of a link, which would be silently overridden."""
    for key in given:
        for source, target in LINKS.items():
            if key == target or key.startswith(f"{target}."):
                raise UserError(f"{key} is taken from {source}: set that instead", 2)
