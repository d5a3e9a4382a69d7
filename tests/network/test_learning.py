"""The network and its loss together: where they start, and that they learn."""

import dataclasses
import math

import pytest
import torch

from vatt.batch import Batch
from vatt.config.model import HeadConfig, VATTConfig
from vatt.config.presets import preset
from vatt.network.contrastive_loss import ContrastiveLoss, LossConfig
from vatt.network.model import VATT
from vatt.training.optim import OptimizerConfig, build_optimizer

ROWS = 32


def random_batch(config: VATTConfig) -> Batch:
    generator = torch.Generator().manual_seed(0)
    size = config.video.image_size
    shape = (ROWS, config.video.num_frames, size, size, 3)
    return Batch(
        video=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        audio=torch.rand(ROWS, config.audio.num_samples, generator=generator) - 0.5,
        text=torch.randint(1, config.text.vocab_size, (ROWS, 1, 8), generator=generator),
    )


def test_loss_at_initialisation_is_about_log_2b_for_each_pair() -> None:
    torch.manual_seed(0)
    head = HeadConfig(batch_norm="all")  # the paper's widths, 512 and 256
    config = dataclasses.replace(preset("tiny"), head=head)
    batch = random_batch(config)
    loss = ContrastiveLoss(LossConfig())(VATT(config)(batch), batch)
    for value, width in (
        (loss.losses["video_audio"], head.d_va),
        (loss.losses["video_text"], head.d_vt),
    ):
        # scores of random directions spread by s = 1 / (τ·sqrt(width)), which adds s² / 2
        expected = math.log(2 * ROWS) + (1 / 0.07 / math.sqrt(width)) ** 2 / 2
        assert value.item() == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize("arrangement", ["agnostic", "specific"])
@pytest.mark.parametrize("form", ["asymmetric", pytest.param("symmetric", marks=pytest.mark.slow)])
def test_one_batch_is_learned_by_heart(arrangement: str, form: str) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(preset("tiny"), arrangement=arrangement, drop_token=0.0)
    model = VATT(config).train()
    batch = random_batch(config)
    loss = ContrastiveLoss(LossConfig(form=form))
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=3e-3))
    for _ in range(80):
        result = loss(model(batch), batch)
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
    assert result.accuracies["video_audio"].item() > 0.95
    assert result.accuracies["video_text"].item() > 0.95


def test_the_same_seed_gives_the_same_losses() -> None:
    def losses() -> list[float]:
        torch.manual_seed(5)
        config = preset("tiny")
        model, loss = VATT(config).train(), ContrastiveLoss(LossConfig())
        optimizer = build_optimizer(model, OptimizerConfig())
        found = []
        for _ in range(3):
            result = loss(model(random_batch(config)), random_batch(config))
            optimizer.zero_grad()
            result.total.backward()
            optimizer.step()
            found.append(result.total.item())
        return found

    assert losses() == losses()
