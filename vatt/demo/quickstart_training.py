"""Training of the quickstart: a small model, as large a vocabulary and as many steps as fit."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.config.shipped import given_values, with_config_paths
from vatt.data.cache import GIB
from vatt.demo.quickstart_data import MediaFacts, PackedMedia
from vatt.errors import UserError
from vatt.models.run_folder import last_checkpoint
from vatt.preprocess.tokenizer import Tokenizer
from vatt.runs.progress import metric_lines
from vatt.runs.training_cli import TrainingCLI
from vatt.runs.training_cli import main as training_main
from vatt.shards.shard_set import ShardSet

PASSES = 20  # of all clips; the time usually ends training before
LEAST_STEPS = 300
WARMUP_SHARE = 0.1  # of the steps, at most
MOST_WORDS = 4096  # rarer words are unknown
FILL_SHARE = 0.25  # of the minutes, that decoding the clips of the cache takes on top
TRAINING_CLIPS = 0.9  # of the cache; the rest is for validation
SEEK_SECONDS = 5.0  # media decoded before a clip: half of the usual time between key frames


class QuickstartCLI(TrainingCLI):
    """Training within another command, which prints the summary itself."""

    def before_instantiate_classes(self) -> None:
        """Says how that command goes on."""
        super().before_instantiate_classes()
        self.advice = "run the same command again to go on"

    def after_fit(self) -> None:
        """Prints nothing."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Model, time and media of the training of `vatt quickstart`.

    Args:
        configs: Names or paths of configurations.
        minutes: Time of training.
        device: auto, cpu, cuda or mps.
        media: Shards for training and validation.
    """

    configs: Sequence[str]
    minutes: float
    device: str
    media: PackedMedia

    def settings(self) -> dict[str, Any]:
        """Settings that follow from the media and the time, by their names in `vatt fit`."""
        facts = self.media.facts
        given = given_values(with_config_paths(self._config_arguments()))
        num_words = _num_words(self.media.train) if facts.num_video_text else 0
        modalities = trainable_modalities(bool(facts.num_video_audio), bool(num_words))
        views = _num_views(facts, given, self.minutes)
        num_clips = facts.num_files * views
        batch_size = min(int(given.get("data.init_args.batch_size", 64)), max(4, num_clips))
        steps = max(LEAST_STEPS, PASSES * num_clips // batch_size)
        warmup = int(given.get("model.init_args.schedule.warmup_steps", 0))
        settings: dict[str, Any] = {
            "data.init_args.batch_size": batch_size,
            "data.init_args.max_failure_rate": 1.0,  # the check has left out what is damaged
            "model.init_args.model.modalities": modalities,
            **{
                f"model.init_args.loss.video_{name}_weight": 0.0
                for name in ("audio", "text")
                if name not in modalities
            },
            "model.init_args.schedule.warmup_steps": min(warmup, int(WARMUP_SHARE * steps)),
            "trainer.accelerator": {"cuda": "gpu"}.get(self.device, self.device),
            "trainer.devices": 1,
            "trainer.max_steps": steps,
            "trainer.val_check_interval": steps,
            "trainer.check_val_every_n_epoch": None,
            "run.time_budget_seconds": 60 * self.minutes,
            "run.wandb": "disabled",
        }
        if given.get("data.init_args.cache_gib"):
            settings["data.init_args.cache_views"] = views
        if "text" in modalities:
            settings["model.init_args.model.text.vocab_size"] = num_words
        return settings

    def arguments(self, run: Path, settings: Mapping[str, Any]) -> list[str]:
        """Command line of `vatt fit`."""
        places = {
            "run.dir": str(run),
            "data.init_args.train": [str(self.media.train)],
            "data.init_args.validation": self.media.validation and str(self.media.validation),
        }
        values = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in {**settings, **places}.items()
        }
        return ["fit", *self._config_arguments(), *(f"--{n}={v}" for n, v in values.items())]

    def _config_arguments(self) -> list[str]:
        return [word for name in self.configs for word in ("--config", name)]


def trainable_modalities(has_audio: bool, has_text: bool) -> list[str]:
    """Modalities of a model for media that have pictures together with sound or captions.

    Raises:
        UserError: they have neither.
    """
    if not (has_audio or has_text):
        raise UserError(
            "nothing to train on: no file has pictures together with sound or captions. Add "
            "captions, or give a trained model with --model"
        )
    return ["video", *["audio"] * has_audio, *["text"] * has_text]


def _num_words(shards: Path) -> int:
    """Size of the vocabulary of all captions; 0 if they have no words."""
    try:
        return Tokenizer.train(ShardSet(shards).captions(), MOST_WORDS).vocab_size
    except UserError:
        return 0


def _num_views(facts: MediaFacts, given: Mapping[str, Any], minutes: float) -> int:
    """Different clips of each file that training sees.

    A cache limits them: by its memory, and by the time of filling it.
    """

    def of(name: str, default: float) -> float:
        return float(given.get(f"model.init_args.model.{name}", default))

    video, audio = VideoConfig(), AudioConfig()
    frames, size = (
        of("video.num_frames", video.num_frames),
        of("video.image_size", video.image_size),
    )
    clip_seconds = frames / of("video.frame_rate", video.frame_rate)
    num_clips = facts.hours * 3600 / clip_seconds
    if cache_gib := float(given.get("data.init_args.cache_gib") or 0):
        clip_bytes = 3 * frames * size**2 + 2 * of("audio.num_samples", audio.num_samples)
        speed = facts.hours * 3600 / max(facts.check_seconds, 0.1)  # of decoding, on all cores
        clips_per_second = speed / (clip_seconds + SEEK_SECONDS)
        in_time = FILL_SHARE * 60 * minutes * clips_per_second
        in_memory = TRAINING_CLIPS * cache_gib * GIB / clip_bytes
        num_clips = min(num_clips, in_memory, in_time)
    return max(1, round(num_clips / facts.num_files))


def train_model(plan: TrainingPlan, run: Path, *, goes_on: bool) -> str:
    """Trains a model, or goes on with an interrupted training.

    Args:
        plan: What to train.
        run: Run folder. One that exists is kept under another name, unless training goes on.
        goes_on: Whether the run folder has a training of the same plan.

    Returns:
        The result as a line.

    Raises:
        UserError: there is nothing to train on, or a signal stopped training.
    """
    settings = plan.settings()
    arguments, kept = plan.arguments(run, settings), ""
    if goes_on and last_checkpoint(run).exists():
        arguments.append("--ckpt_path=last")
    elif run.exists():
        names = (run.with_name(f"{run.name}-{number}") for number in count(1))
        aside = next(path for path in names if not path.exists())
        run.rename(aside)
        kept = f"; the one before is {aside}"
    cli = training_main(arguments, QuickstartCLI)
    metrics = cli.trainer.callback_metrics
    loss = f", loss {float(metrics['train/loss']):.2f}" if "train/loss" in metrics else ""
    recall = "".join(f"; {' '.join(line.split())}" for line in metric_lines(metrics, "val")[:1])
    batch = settings["data.init_args.batch_size"]
    return f"{run}: {cli.trainer.global_step} steps of {batch} clips{loss}{recall}{kept}"
