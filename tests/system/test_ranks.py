"""Losses, gradients and batch statistics of several processes: those of one with all clips."""

import dataclasses
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vatt import ContrastiveLoss, LossConfig, preset
from vatt.batch import Batch
from vatt.config.model import HeadConfig, VATTConfig
from vatt.network.model import VATT, VATTOutput
from vatt.system.ranks import rank, world_size
from vatt.training.rank_forward import forward_on_rank

pytestmark = pytest.mark.ddp

ROWS, CANDIDATES, WIDTH = 12, 3, 16
# how many of the rows each rank has
SPLITS = {
    "even-1": (12,),
    "even-2": (6, 6),
    "even-4": (3, 3, 3, 3),
    "uneven-2": (9, 3),
    "uneven-4": (4, 1, 5, 2),
}
LOSSES = {
    "asymmetric": LossConfig(),
    "symmetric": LossConfig(form="symmetric", learn_temperature=True),
    "sigmoid": LossConfig(form="sigmoid"),
    "official asymmetric": LossConfig(official_masking=True),
    "official symmetric": LossConfig(form="symmetric", official_masking=True),
}
MASKS = ("all", "random", "last rank mute", "first rank wordless", "no words", "nothing meets")
NETWORKS = {
    "agnostic fac": (False, "fac"),
    "agnostic joint": (False, "joint"),
    "specific fac": (True, "fac"),
}


def masks_of(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows have picture, sound and captions."""
    generator = torch.Generator().manual_seed(1)
    video, audio = (torch.rand(ROWS, generator=generator) < 0.7 for _ in range(2))
    text = torch.rand(ROWS, CANDIDATES, generator=generator) < 0.6
    if kind == "all":
        video, audio, text = video | True, audio | True, text | True
    elif kind == "last rank mute":
        audio[-6:] = False
    elif kind == "first rank wordless":
        text[:9] = False
    elif kind == "no words":
        text[:] = False
    elif kind == "nothing meets":
        audio, text = ~video & audio, ~video[:, None] & text
    return video, audio, text


def share_of(split: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
    """This rank's rows."""
    if world_size() == 1:
        return tensors
    end = list(accumulate(split))[rank()]
    return tuple(tensor[end - split[rank()] : end] for tensor in tensors)


def loss_case(name: str, masks: str, joint: bool, split: tuple[int, ...]) -> dict[str, Tensor]:
    """Values of a loss and the gradients of embeddings and temperatures, of this rank's rows."""
    generator = torch.Generator().manual_seed(0)
    spaces = ["joint"] * 4 if joint else ["va", "va", "vt", "vt"]
    names = [f"{m}_{s}" for m, s in zip(("video", "audio", "video", "text"), spaces, strict=True)]
    embeddings = {}
    for key in dict.fromkeys(names):
        shape = (ROWS, CANDIDATES, WIDTH) if key.startswith("text") else (ROWS, WIDTH)
        whole = torch.randn(shape, generator=generator, dtype=torch.float64)
        embeddings[key] = share_of(split, whole)[0].clone().requires_grad_()
    video, audio, text = share_of(split, *masks_of(masks))
    batch = Batch(
        video=torch.zeros(len(video), 1, 1, 1, 3, dtype=torch.uint8),
        audio=torch.zeros(len(video), 1),
        text=torch.ones(len(video), CANDIDATES, 1, dtype=torch.int64),
        video_mask=video,
        audio_mask=audio,
        text_mask=text,
    )
    weight = 0.5 if joint else 0.0
    config = dataclasses.replace(LOSSES[name], audio_text_weight=weight)
    loss = ContrastiveLoss(config).double()
    result = loss(VATTOutput(embeddings=embeddings), batch)
    result.total.backward()
    values = {"total": result.total.detach()}
    values |= {f"loss {pair}": value for pair, value in result.losses.items()}
    values |= {f"accuracy {pair}": value for pair, value in result.accuracies.items()}
    values |= {f"rows {key}": e.grad for key, e in embeddings.items() if e.grad is not None}
    for key, parameter in loss.named_parameters():
        if parameter.grad is not None:
            values[f"weight {key}"] = parameter.grad
    return values


def loss_cases(split: tuple[int, ...]) -> dict[str, dict[str, Tensor]]:
    return {
        f"{name}, {masks}, {joint}": loss_case(name, masks, joint, split)
        for name in LOSSES
        for masks in MASKS
        for joint in (False, True)
    }


class Training(nn.Module):
    """Network and loss in one module, as DDP wants them."""

    def __init__(self, config: VATTConfig, loss: LossConfig) -> None:
        super().__init__()
        self.network, self.loss = VATT(config), ContrastiveLoss(loss)

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(forward_on_rank(self.network, batch), batch).total


def network_config(specific: bool, head: str) -> VATTConfig:
    config = preset("tiny")
    changes: dict[str, Any] = {"drop_token": 0.0, "head": HeadConfig(kind=head, batch_norm="all")}
    changes["encoder"] = dataclasses.replace(config.encoder, dropout=0.0)
    if specific:
        changes["arrangement"] = "specific"
    return dataclasses.replace(config, **changes)


def network_case(name: str, masks: str, split: tuple[int, ...]) -> dict[str, Tensor]:
    """Gradients of all weights and the batch statistics after one step."""
    config = network_config(*NETWORKS[name])
    torch.manual_seed(0)
    training = Training(config, LossConfig(learn_temperature=True)).double()
    generator = torch.Generator().manual_seed(2)
    size = config.video.image_size
    shape = (ROWS, config.video.num_frames, size, size, 3)
    video = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    audio = torch.randn(ROWS, config.audio.num_samples, generator=generator, dtype=torch.float64)
    text = torch.randint(0, 9, (ROWS, CANDIDATES, config.text.max_words), generator=generator)
    parts = share_of(split, video, audio, text, *masks_of(masks))
    names = ("video", "audio", "text", "video_mask", "audio_mask", "text_mask")
    batch = Batch(**dict(zip(names, parts, strict=True)))
    if masks == "first rank wordless" and not batch.facts.num_rows("text") and rank() == 0:
        # as a data module without captions gives it; the other wordless ranks have empty captions
        batch = dataclasses.replace(batch, text=None, text_mask=None)
    module = DistributedDataParallel(training) if world_size() > 1 else training
    total = module(batch)
    total.backward()
    values = {"total": total.detach()}
    for key, parameter in training.named_parameters():
        gradient = parameter.grad
        if parameter.requires_grad:
            values[f"gradient {key}"] = (
                torch.zeros_like(parameter) if gradient is None else gradient
            )
    return values | {f"statistic {key}": value for key, value in training.named_buffers()}


def network_cases(split: tuple[int, ...]) -> dict[str, dict[str, Tensor]]:
    kinds = ("random", "last rank mute", "first rank wordless", "no words")
    return {
        f"{name}, {masks}": network_case(name, masks, split) for name in NETWORKS for masks in kinds
    }


def assert_equal(actual: Tensor, expected: Tensor, name: str) -> None:
    size = max(float(expected.abs().nan_to_num().max()), 1e-3)
    close = torch.isclose(actual, expected, rtol=0, atol=1e-9 * size, equal_nan=True)
    assert bool(close.all()), f"{name}: {actual} is not {expected}"


@pytest.fixture(scope="module")
def whole_losses() -> dict[str, dict[str, Tensor]]:
    return loss_cases(())


@pytest.fixture(scope="module")
def whole_networks() -> dict[str, dict[str, Tensor]]:
    return network_cases(())


@pytest.mark.parametrize(
    "split",
    [
        pytest.param(name, marks=pytest.mark.slow if len(rows) == 4 else ())
        for name, rows in SPLITS.items()
    ],
)
def test_losses_and_gradients_of_ranks_equal_those_of_the_whole_batch(
    whole_losses: dict[str, dict[str, Tensor]], tmp_path: Path, split: str
) -> None:
    ranks = run_ranks(loss_cases, len(SPLITS[split]), tmp_path, SPLITS[split])
    for case, expected in whole_losses.items():
        parts = [one[case] for one in ranks]
        for name, value in expected.items():
            if name.startswith("rows"):
                actual = torch.cat([part[name] for part in parts]) / len(parts)
            else:
                actual = torch.stack([part[name] for part in parts]).mean(dim=0)
            assert_equal(actual, value, f"{case}, {name}")


@pytest.mark.slow
@pytest.mark.parametrize("split", ["even-2", "uneven-2", "even-4"])
def test_weights_and_statistics_of_ranks_equal_those_of_the_whole_batch(
    whole_networks: dict[str, dict[str, Tensor]], tmp_path: Path, split: str
) -> None:
    ranks = run_ranks(network_cases, len(SPLITS[split]), tmp_path, SPLITS[split])
    for case, expected in whole_networks.items():
        for number, part in enumerate(ranks):
            assert part[case].keys() == expected.keys()
            for name, value in expected.items():
                assert_equal(part[case][name], value, f"{case}, rank {number}, {name}")
