"""Faults that the fake GPU has to find, and a second opinion on its memory."""

from dataclasses import dataclass
from typing import Any

import torch
from fake_gpu import GIB, fake_gpu
from gpu_recipes import fake_ranks, measure
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import _disable_current_modes

from vatt.batch import Batch
from vatt.config.presets import as_classifier, preset
from vatt.network.classification_loss import classification_loss
from vatt.network.contrastive_loss import ContrastiveLoss, LossConfig
from vatt.network.model import VATT, VATTOutput
from vatt.system.ranks import RowLayout, gather_rows
from vatt.training.optim import OptimizerConfig, build_optimizer
from vatt.training.pretrain import PretrainModule

TINY = {"arguments": ["--config=tiny"], "gpus": 1}


def operators(_: None) -> dict[str, Any]:
    """What the meter says about some operators whose costs are known."""
    found: dict[str, Any] = {}
    with fake_gpu() as meter:
        host = torch.zeros(1000)
        device = torch.zeros(1000, device="cuda")  # 4000 bytes are 8 blocks
        view, twice = device[:10], device * 2
        found["live"] = meter.live_bytes
        del twice
        found["freed"] = meter.live_bytes
        found["peak"] = meter.peak_bytes
        found["kernels"] = meter.kernels  # zeros and the product, not the view
        for name, action in {
            "item": lambda: view.sum().item(),
            "if": lambda: bool((view > 0).any()),
            "nonzero": lambda: view.nonzero(),
            "mask": lambda: view[view > 0],
            "inverse": lambda: torch.linalg.inv(torch.eye(3, device="cuda")),
            "to host": lambda: view.cpu(),
            "to device": lambda: host.to("cuda"),
            "number": lambda: torch.tensor(0.5, device="cuda"),
            "to device, not blocking": lambda: host.to("cuda", non_blocking=True),
            "product": lambda: device @ device,
        }.items():
            meter.reset()
            action()
            found[name] = sum(meter.waits.values())
        found["mix"] = None
        try:
            device + host
        except RuntimeError as error:
            found["mix"] = type(error).__name__
    return found


def tiny(_: None) -> dict[str, Any]:
    """The smallest recipe, and what is known about some operators."""
    return {"recipe": measure([TINY])[0], "operators": operators(None)}


def planted(_: None) -> dict[str, Any]:
    """The smallest recipe without and with faults in its training step."""
    original, kept = PretrainModule.training_step, []
    faults = {
        "none": lambda loss: loss,
        "wait": lambda loss: (loss.item(), loss)[1],
        "copy": lambda loss: loss + torch.ones(1).to(loss.device).sum(),
        "leak": lambda loss: (kept.append(loss.new_zeros(2**20)), loss)[1],
        "mix": lambda loss: (loss[None] + torch.ones(1)).sum(),
    }
    found: dict[str, Any] = {}
    for name, fault in faults.items():
        PretrainModule.training_step = lambda module, batch, index, fault=fault: fault(
            original(module, batch, index)
        )
        try:
            found[name] = measure([TINY])[0]
        except Exception as error:
            found[name] = type(error).__name__
    return found


def second_opinion(name: str) -> dict[str, float]:
    """Peak of the second step of a model by the meter and by torch's tracker, in GiB.

    Args:
        name: `pretrain` for 64 clips of ma-base, `finetune` for 8 clips of Kinetics.
    """
    with fake_gpu() as meter:
        config, size = preset("ma-base"), 64
        if name == "finetune":
            config, size = as_classifier(preset("ma-medium"), "video", 400), 8
        with torch.device("cuda"):
            network, loss = (
                VATT(config).train(),
                ContrastiveLoss(LossConfig(learn_temperature=True)),
            )
        video, frames = config.video.image_size, config.video.num_frames
        with _disable_current_modes():  # a batch counts its rows
            columns = {"video": torch.zeros(1).expand(size, frames, video, video, 3)}
            if name == "pretrain":
                columns["audio"] = torch.zeros(1).expand(size, config.audio.num_samples)
                columns["text"] = torch.ones(size, 5, config.text.max_words, dtype=torch.int64)
            batch = Batch(**columns)
        batch = batch.to("cuda")
        optimizer = build_optimizer(network, OptimizerConfig())
        tracker = MemTracker()
        tracker.track_external(network, optimizer, *batch._tensors().values())
        with tracker:
            for _ in range(2):
                meter.reset()
                with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
                    output = network(batch)
                if name == "pretrain":
                    value = loss(output, batch).total
                else:
                    labels = torch.zeros(size, 400, device="cuda")
                    value = classification_loss(output.logits, labels, multi_label=False)
                value.backward()
                del value, output
                optimizer.step()
                optimizer.zero_grad()
                tracker.reset_mod_stats()
        snapshot = tracker.get_tracker_snapshot("peak")
    (by_kind,) = (kinds for device, kinds in snapshot.items() if device.type == "cuda")
    return {"meter": meter.peak_bytes / GIB, "tracker": by_kind["Total"] / GIB}


def loss_of_ranks(sizes: dict[str, int]) -> dict[str, Any]:
    """Shapes and memory of the loss of published size and its gradient on one of many ranks.

    Args:
        sizes: Number of `ranks`, and of `clips` of each, with five captions.
    """
    ranks, clips = sizes["ranks"], sizes["clips"]
    with fake_gpu() as meter, fake_ranks(ranks):
        with torch.device("cuda"):
            shapes = {
                **{f"{name}_va": (clips, 512) for name in ("video", "audio")},
                **{"video_vt": (clips, 256), "text_vt": (clips, 5, 256)},
            }
            made = {name: torch.zeros(shape, requires_grad=True) for name, shape in shapes.items()}
            loss = ContrastiveLoss(LossConfig())
            masks = {name: torch.ones(clips, dtype=torch.bool) for name in ("video", "audio")}
            masks["text"] = torch.ones(clips, 5, dtype=torch.bool)
        before = meter.live_bytes
        rows = gather_rows(made["video_va"], RowLayout((clips,) * ranks, 1)).shape
        meter.reset()
        output = loss(VATTOutput(embeddings=dict(made)), Masked(masks))
        output.total.backward()
        gradients = all(value.grad.shape == value.shape for value in made.values())
    peak_mib = (meter.peak_bytes - before) / 2**20
    waits = sum(meter.waits.values())
    return {"rows": rows, "gradients": gradients, "peak_mib": peak_mib, "waits": waits}


@dataclass
class Masked:
    """What the loss reads of a batch."""

    masks: dict[str, torch.Tensor]
