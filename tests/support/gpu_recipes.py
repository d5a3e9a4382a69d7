"""One training step and one validation step of `vatt fit` on the fake GPU.

The command line, Lightning's loop and all callbacks run; only the clips are not read: they are
zeros of the recipe's sizes, with five captions each.
"""

import contextlib
import gc
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import fake_gpu
import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives  # so that they take fake tensors
from fake_gpu import GIB, Meter, held_bytes
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.states import RunningStage
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from datamodules.classification import ClassificationData
from datamodules.pretrain import MAX_VALIDATION_ROWS, PretrainData
from vatt.batch import Batch, LabelledBatch, MicroBatches
from vatt.config.presets import preset
from vatt.config.shipped import with_config_paths
from vatt.network import contrastive_loss
from vatt.runs.training_cli import TrainingCLI

DEVICE = torch.device("cuda", 0)
NUM_WARM_UP = 8  # clips of the first step, which makes the optimiser's state
OPTIONS = (
    *("--run.wandb=disabled", "--trainer.num_sanity_val_steps=0", "--trainer.limit_val_batches=0"),
    *("--trainer.log_every_n_steps=1000", "--trainer.enable_progress_bar=false"),
    "--model.init_args.compile_towers=false",  # nothing is compiled for fake tensors
)
MANY_CAPTIONS = 20  # of a clip in validation, as in MSR-VTT


class MeasuredError(Exception):
    """All steps are measured: the run ends."""


class FakeAccelerator(CUDAAccelerator):
    """A GPU that needs no driver."""

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        return [0]

    @staticmethod
    def is_available() -> bool:
        return True

    def setup_device(self, device: torch.device) -> None:
        pass

    def setup(self, trainer: Trainer) -> None:
        pass

    def teardown(self) -> None:
        pass


class OnFakeGpu(SingleDeviceStrategy):
    """The module is on the device from the start: fake tensors cannot move in place."""

    def model_to_device(self) -> None:
        pass

    def teardown(self) -> None:
        pass


class MeasuredCLI(TrainingCLI):
    """`vatt fit` on the fake GPU with made-up batches."""

    def __init__(self, arguments: list[str], probe: "Probe") -> None:
        self.probe = probe
        super().__init__(arguments)

    def instantiate_classes(self) -> None:
        with DEVICE:
            super().instantiate_classes()
        self.probe.make_batches(self.model, self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        kwargs |= {"accelerator": FakeAccelerator(), "devices": 1, "num_nodes": 1}
        kwargs["strategy"] = OnFakeGpu(DEVICE)
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self.probe)
        return trainer


@dataclass
class Loader:
    """Loader of batches that are there."""

    batches: list[Any]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


@dataclass(eq=False)
class Probe(Callback):
    """Notes the meter's counts after each step, and ends the run.

    The steps are one of few clips, one of few of which every second one lacks sound or text, the
    step of the recipe, and one of validation.
    """

    meter: Meter
    world_size: int
    results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ranks = contextlib.ExitStack()
        self.before_bytes = self.meter.live_bytes  # of earlier runs in this process

    def make_batches(self, module: Any, data: Any) -> None:
        """Gives the data module the batches."""
        with _disable_current_modes():
            share = data.batch_size // self.world_size
            micro = getattr(data, "micro_batch_size", None)
            make = partial(_pretraining, ranks=self.world_size)
            if not isinstance(data, PretrainData):
                make = _labelled
            sizes = (NUM_WARM_UP, NUM_WARM_UP, share, NUM_WARM_UP)
            batches = [
                make(data, size, micro, lacks=number == 1) for number, size in enumerate(sizes)
            ]
            self.validation = make(data, None, None, lacks=False)
            self.results["validation_rows"] = len(self.validation)
        self.names = ("warm-up", "partial", "training")
        self.results["clips"] = share
        module.load_start = lambda source: None
        data.prepare_data = data.setup = data.save_classes = lambda *_, **__: None
        data.train_dataloader = lambda: Loader(batches)
        data.val_dataloader = lambda: []
        data.cache_bytes = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.results["weights_gib"] = sum(p.nbytes for p in pl_module.parameters()) / GIB
        if self.world_size > 1:  # not before: Lightning would ask a real group to wait
            self.ranks.enter_context(fake_ranks(self.world_size))
        self.meter.reset()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes what the steps before have left in memory that nobody needs."""
        if batch_idx == len(self.names):
            self._validate(trainer, pl_module)
            raise MeasuredError
        if batch_idx + 1 == len(self.names):
            (optimizer,) = trainer.optimizers
            needed = [*pl_module.parameters(), *(p.grad for p in pl_module.parameters())]
            needed += tree_leaves([*map(dict, optimizer.state.values())])
            needed += [*batch.masks.values(), *vars(batch).values()]
            left_bytes = self.meter.live_bytes - self.before_bytes - held_bytes(needed)
            self.results["left_mib"] = left_bytes / 2**20

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._note(self.names[batch_idx])

    def _validate(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.state.stage = RunningStage.VALIDATING
        module.eval()
        self.meter.reset()
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            moved = trainer.strategy.batch_to_device(self.validation, dataloader_idx=0)
            module.validation_step(moved, 0)
        self._note("validation")

    def _note(self, step: str) -> None:
        meter = self.meter
        self.results[step] = {
            "peak_gib": (meter.peak_bytes - self.before_bytes) / GIB,
            "waits": dict(meter.waits),
            "copies": dict(meter.copies),
            "kernels": meter.kernels,
        }
        meter.reset()


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Zeros that take no memory on the host."""
    return torch.zeros(1, dtype=dtype).expand(*shape)


def _pretraining(
    data: PretrainData, size: int | None, micro: int | None, lacks: bool, ranks: int
) -> Batch | MicroBatches:
    video, text, num_captions = data.video, data.text, data.captions_per_step or data.num_candidates
    if size is None:
        share = min(MAX_VALIDATION_ROWS, data.batch_size // ranks)
        size = data.validation_batch_size or data.micro_batch_size or share
        num_captions = min(MANY_CAPTIONS, data.max_validation_captions)
    if micro is not None:
        part = min(micro, size // 2)
        parts = [_pretraining(data, part, None, lacks, ranks) for _ in range(size // part)]
        return MicroBatches(parts=tuple(parts), device=torch.device("cpu"))
    side = video.image_size
    ids = torch.ones(size, num_captions, text.max_words, dtype=torch.int64)
    ids[0, 0, 1:] = 0  # padding needs a mask
    batch = Batch(
        video=_zeros(size, video.num_frames, side, side, 3, dtype=torch.uint8),
        audio=_zeros(size, data.audio.num_samples),
        text=ids,
        seeds=torch.arange(size),
        keys=tuple(map(str, range(size))),
    )
    if not lacks:
        return batch
    every_second = torch.arange(size) % 2 == 0
    ids[every_second] = 0
    return replace(batch, audio_mask=every_second, text_mask=None)


def _labelled(
    data: ClassificationData, size: int | None, micro: int | None, lacks: bool
) -> LabelledBatch:
    views = 1
    if size is None:
        views = data.num_windows * data.num_crops
        size = data.validation_batch_size * views
    assert data.classifier is not None
    columns: dict[str, Any] = {"audio": _zeros(size, data.audio.num_samples)}
    if data.classifier.modality == "video":
        video, side = data.video, data.video.image_size
        shape = (size, video.num_frames, side, side, 3)
        columns = {"video": _zeros(*shape, dtype=torch.uint8)}
    mask = torch.arange(size) % 2 == 0 if lacks else torch.ones(size, dtype=torch.bool)
    return LabelledBatch(
        **columns,
        **{f"{data.classifier.modality}_mask": mask},
        labels=torch.zeros(size, data.classifier.num_classes),
        seeds=torch.arange(size),
        keys=tuple(map(str, range(size))),
        num_views=views,
    )


@contextlib.contextmanager
def fake_ranks(world_size: int) -> Iterator[None]:
    """Context with a fake process group, whose ranks all have what this process has."""
    exchange = contrastive_loss.exchange_layout

    def exchange_values(num_rows: int, num_candidates: int) -> Any:
        with _disable_current_modes():  # the hosts' exchange has values
            return exchange(num_rows, num_candidates)

    contrastive_loss.exchange_layout = exchange_values
    dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        contrastive_loss.exchange_layout = exchange
        dist.destroy_process_group()


def measure(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts of several recipes.

    Args:
        cases: `arguments` of `vatt fit`, `gpus` of the run, and the preset that training starts
            from, if any, as `start`.
    """
    results = []
    with fake_gpu.fake_gpu() as meter, tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            arguments = ["fit", *case["arguments"], *OPTIONS]
            if case.get("start"):
                start = Path(folder) / case["start"]
                start.mkdir(exist_ok=True)
                (start / "config.json").write_text(json.dumps(preset(case["start"]).to_dict()))
                arguments.append(f"--model.init_args.init_from={start}")
            arguments.append(f"--data.init_args.train={'x' if case.get('start') else '[x]'}")
            arguments.append(f"--run.dir={folder}/{number}")
            probe = Probe(meter, case["gpus"])
            with probe.ranks, contextlib.suppress(MeasuredError):
                MeasuredCLI(with_config_paths(arguments), probe)
            results.append(probe.results)
            gc.collect()
    return results
