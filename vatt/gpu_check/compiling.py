"""Stage `compile`: compiled blocks are compiled in the first steps, and never again."""

import logging
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch._dynamo.utils import counters

from vatt.batch import Batch, MicroBatches
from vatt.config.model import VATTConfig
from vatt.config.presets import preset
from vatt.gpu_check.batches import full_batch
from vatt.gpu_check.figures import Row
from vatt.gpu_check.gradients import with_draws
from vatt.gpu_check.place import Place
from vatt.network.contrastive_loss import ContrastiveLoss, LossConfig
from vatt.network.model import VATT
from vatt.training.accumulation import forward_cached
from vatt.training.compute import compile_towers

CLIPS, PART = 8, 4
WARM_UP = 4  # steps in which each kind of batch occurs


class _Limits(logging.Handler):
    """Counts the messages of a compiler that gives up: it goes on with other random draws."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "torch._dynamo hit config." in str(record.msg)


def measure_compiling(place: Place) -> Iterator[Row]:
    """Graphs of validation and of training in micro-batches, whose backward passes encode again."""
    limits, logger = _Limits(), logging.getLogger("torch._dynamo.convert_frame")
    logger.addHandler(limits)
    for arrangement in ("specific", "agnostic"):
        torch.compiler.reset()
        counters.clear()
        limits.count = 0
        config = replace(preset("tiny"), arrangement=arrangement)
        counts = _count_graphs(
            with_draws(config, dropout=0.1, drop_token=0.5), place, 8 if place.quick else 20
        )
        yield Row(arrangement, "graphs", counts[WARM_UP], at_least=2)
        again = counts[-1] - counts[WARM_UP]
        yield Row(arrangement, "graphs that later steps add", again, at_most=0)
        yield Row(arrangement, "times the compiler gave up", limits.count, at_most=0)
        breaks = sum(counters["graph_break"].values())
        yield Row(arrangement, "breaks of a graph", breaks, at_most=0)


def _count_graphs(config: VATTConfig, place: Place, num_steps: int) -> list[int]:
    """Number of graphs after validation and after each step."""
    torch.manual_seed(0)
    network = VATT(config).to(place.device).train()
    loss = ContrastiveLoss(LossConfig()).to(place.device)
    compile_towers(network, place.backend)
    network.eval()
    for number in range(2):
        batch = _batch(config, number).to(place.device)
        with torch.no_grad(), torch.autocast(place.device.type, torch.bfloat16):
            network(batch)
    network.train()
    counts = [counters["stats"]["unique_graphs"]]
    for number in range(num_steps):
        batches = MicroBatches.split(_batch(config, number), PART).to(place.device)
        with torch.autocast(place.device.type, torch.bfloat16):
            output = forward_cached(network, batches)
        loss(output, batches).total.backward()
        network.zero_grad()
        counts.append(counters["stats"]["unique_graphs"])
    return counts


def _batch(config: VATTConfig, number: int) -> Batch:
    """Clips of which others lack sound or words each time; every second batch has padding."""
    torch.manual_seed(number)
    batch = replace(full_batch(config, CLIPS), seeds=None)
    assert batch.text is not None
    text, rows = batch.text, torch.arange(CLIPS)
    if number % 2:
        text = text.clone()
        text[:, :, 4 + number % 5 :] = 0
        text[1, 0, 2:] = 0
    return replace(batch, text=text, text_mask=None, audio_mask=(rows + number) % 4 > 0)
