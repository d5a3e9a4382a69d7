"""Progress of a training run, and the summary at its end."""

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from torch import Tensor
from tqdm import tqdm

from vatt.config.spaces import DIRECTIONS, search_size
from vatt.system.progress import line_seconds, on_terminal

REFRESH_SECONDS = 0.5
# what the line shows, with its short name and format
SHOWN = {
    "train/loss": ("loss", "{:.3f}"),
    "perf/clips_per_second": ("clips/s", "{:.0f}"),
    "val/text_to_video/R@1": ("R@1 text", "{:.1f}"),
    "val/audio_to_video/R@1": ("R@1 audio", "{:.1f}"),
    "val/top1": ("top-1", "{:.1f}"),
    "val/mAP": ("mAP", "{:.1f}"),
}


class TrainingProgress(ProgressBar):
    """Progress bar of training, by steps or by time, with loss, speed and recall.

    Outside a terminal, prints a line from time to time instead, for log files.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._shown = self._began = 0.0  # when, by the monotonic clock
        self._first_share = 0.0  # of the training that was done before
        self._enabled = True

    def disable(self) -> None:
        """Disables the bar; Lightning calls this on all ranks except the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the bar at the present step."""
        self._shown = self._began = time.monotonic()
        self._first_share = _progress(trainer, pl_module)
        if self._enabled:
            weights = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
            where = f"{trainer.world_size} × {trainer.strategy.root_device.type}"
            print(
                f"Training {weights / 1e6:.3g} M weights on {where}, from step "
                f"{trainer.global_step}, in {trainer.default_root_dir}",
                file=sys.stderr,
            )
        if self._enabled and on_terminal():
            self._bar = tqdm(
                total=1.0,
                initial=self._first_share,
                bar_format="{desc} {percentage:3.0f}%|{bar:24}| {elapsed}<{remaining}{postfix}",
                dynamic_ncols=True,
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Updates the bar, not too often for the eye."""
        wait = line_seconds() if self._bar is None else REFRESH_SECONDS
        if self._enabled and time.monotonic() - self._shown >= wait:
            self._show(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the new recall."""
        if self._enabled and trainer.training and not trainer.sanity_checking:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the last line on the screen."""
        if self._enabled:
            self._show(trainer, pl_module)
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Ends the line, so that the error message starts on a new one."""
        self._close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints a text above the bar."""
        tqdm.write(" ".join(map(str, args)), file=sys.stderr)

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown = time.monotonic()
        share = _progress(trainer, pl_module)
        title = f"step {trainer.global_step}"
        by_time = getattr(pl_module, "time_share", 0.0) > _share_of_steps(trainer)
        title += "" if by_time else f"/{trainer.max_steps}"
        values = ", ".join(
            f"{name} {form.format(float(trainer.callback_metrics[key]))}{_chance(trainer, key)}"
            for key, (name, form) in SHOWN.items()
            if key in trainer.callback_metrics
        )
        if self._bar is None:
            done = f"{share:.0%} of the time" if by_time else f"{share:.0%}"
            print(f"{title} ({done}), {self._times(share)}, {values}", file=sys.stderr, flush=True)
            return
        self._bar.n = share
        self._bar.set_description_str(title, refresh=False)
        self._bar.set_postfix_str(values)

    def _times(self, share: float) -> str:
        """Time so far, and the time that is left at the same speed, once there is a speed."""
        seconds = time.monotonic() - self._began
        elapsed = f"{tqdm.format_interval(round(seconds))} elapsed"
        if not self._first_share < share < 1:
            return elapsed
        left = seconds * (1 - share) / (share - self._first_share)
        return f"{elapsed}, {tqdm.format_interval(round(left))} left"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _chance(trainer: Trainer, key: str) -> str:
    """R@1 of guessing, to show behind an R@1; empty for other metrics."""
    name, _, column = key.rpartition("/")
    num_candidates = trainer.callback_metrics.get(f"{name}/num_candidates")
    if column != "R@1" or num_candidates is None:
        return ""
    return f" (chance {100 / float(num_candidates):.2g})"


def _progress(trainer: Trainer, pl_module: LightningModule) -> float:
    share = getattr(pl_module, "progress", None)
    return float(share) if share is not None else _share_of_steps(trainer)


def _share_of_steps(trainer: Trainer) -> float:
    return trainer.global_step / max(trainer.max_steps, 1)


def fit_summary(
    trainer: Trainer,
    *,
    seconds: float,
    checkpoint: Path,
    best: ModelCheckpoint | None,
    config: Path,
    time_budget: float | None,
    wandb_files: Path | None,
    model: Path | None = None,
) -> str:
    """Summary after training: metrics, files and next steps.

    Args:
        trainer: Trainer with the metrics.
        seconds: Training time.
        checkpoint: Last checkpoint.
        best: Callback of the best checkpoint, if there is one.
        config: Configuration of the run.
        time_budget: Time budget of the run in seconds, if it has one.
        wandb_files: Folder of the W&B run, if there is one.
        model: Folder of the exported model, if the run has exported one.
    """
    metrics = trainer.callback_metrics
    loss = f", loss {float(metrics['train/loss']):.3f}" if "train/loss" in metrics else ""
    minutes, rest = divmod(round(seconds), 60)
    lines = [
        f"Trained {trainer.global_step} steps in {minutes}:{rest:02d}{loss}.",
        *metric_lines(metrics, "val"),
        f"  checkpoint  {checkpoint}",
        f"  metrics     {checkpoint.parent.parent / 'metrics.csv'}",
    ]
    if best is not None and best.best_model_score is not None:
        found = f"{best.monitor} {float(best.best_model_score):.3g}"
        lines.insert(-1, f"  best        {checkpoint.with_name('best.ckpt')} ({found})")
    if model is not None:
        lines.append(f"  model       {model}")
    if wandb_files is not None:
        offline = wandb_files.name.startswith("offline-")
        # a resumed run has several pieces, of which each would replace the one before it
        sync = f"WANDB_RESUME=allow wandb sync {shlex.quote(str(wandb_files.parent))}"
        lines.append(f"  W&B         {sync if offline else wandb_files}")
    config_word = shlex.quote(str(config))
    again = f"vatt fit --config {config_word} --ckpt_path last"
    network = getattr(trainer.lightning_module, "network", None)
    has_spaces = network is not None and network.config.head is not None
    report = [f"  vatt report {shlex.quote(str(config.parent))}"] if has_spaces else []
    lines += [
        "Next:",
        *report,
        f"  vatt validate --config {config_word} --ckpt_path last",
        f"  {again} {more_training(trainer, time_budget)}",
    ]
    return "\n".join(lines)


def more_training(trainer: Trainer, time_budget: float | None) -> str:
    """Options with which a run that has ended trains as much again.

    Args:
        trainer: Trainer at the end of the run.
        time_budget: Time budget of the run in seconds, if it has one.
    """
    options = []
    if time_budget is None or trainer.global_step >= trainer.max_steps:
        options.append(f"--trainer.max_steps {2 * trainer.max_steps}")
    if time_budget is not None:
        options.append(f"--run.time_budget_seconds {2 * time_budget:g}")
    return " ".join(options)


def metric_lines(metrics: Mapping[str, Tensor], prefix: str) -> list[str]:
    """Table of the retrieval and classification metrics that were logged.

    Retrieval has the number of queries and candidates, and the R@1 of guessing.
    """
    metrics = {name.removeprefix(f"{prefix}/"): value for name, value in metrics.items()}
    lines = []
    for direction in DIRECTIONS:
        row = [(k, metrics.get(f"{direction}/{k}")) for k in ("R@1", "R@5", "R@10", "MedR")]
        if all(value is not None for _, value in row):
            values = "  ".join(f"{name} {value:5.1f}" for name, value in row)
            size = search_size(
                direction,
                float(metrics[f"{direction}/num_queries"]),
                float(metrics[f"{direction}/num_candidates"]),
            )
            lines.append(f"  {direction.replace('_to_', ' → '):16} {values}  ({size})")
    named = {"top1": "top-1", "top5": "top-5", "mAP": "mAP", "AUC": "AUC", "d_prime": "d'"}
    found = [f"{shown} {metrics[name]:.3g}" for name, shown in named.items() if name in metrics]
    if found:
        unread = metrics.get("num_unread", 0.0)
        left_out = f", {unread:.0f} could not be read" if unread else ""
        lines.append(f"  {'  '.join(found)}  ({metrics['num_clips']:.0f} files{left_out})")
    return lines
