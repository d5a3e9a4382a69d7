"""The contrastive losses against loops written from their formulas."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.batch import Batch
from vatt.network.contrast import Rows, Sides, contrast, contrast_sigmoid
from vatt.network.contrastive_loss import ContrastiveLoss, LossConfig
from vatt.network.model import VATTOutput

ROWS, CANDIDATES, WIDTH, SCALE = 6, 3, 8, 1 / 0.07


def make_pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    text = torch.randn(ROWS, CANDIDATES, WIDTH, generator=generator, dtype=torch.float64)
    return F.normalize(video, dim=-1), F.normalize(text, dim=-1)


def make_masks() -> tuple[Tensor, Tensor]:
    video_mask = torch.tensor([True, True, False, True, True, True])
    text_mask = torch.ones(ROWS, CANDIDATES, dtype=torch.bool)
    text_mask[1], text_mask[4, 2] = False, False
    return video_mask, text_mask


def contrast_alone(sides: Sides, scale: float, *, symmetric: bool) -> Rows:
    """Where one process has all clips."""
    scale_tensor = torch.tensor(scale, dtype=sides.first_BD.dtype)
    return contrast(sides, sides, 0, scale_tensor, symmetric=symmetric)


def looped_loss(
    video: Tensor, text: Tensor, video_mask: Tensor, text_mask: Tensor, *, symmetric: bool
) -> dict[int, float]:
    """Formulas of the paper's section 3.5 and of the official asymmetric form, clip by clip."""
    score = np.exp(SCALE * np.einsum("id,jld->ijl", video.numpy(), text.numpy()))
    losses = {}
    for i in range(ROWS):
        if not (video_mask[i] and text_mask[i].any()):
            continue
        bag = [k for k in range(CANDIDATES) if text_mask[i, k]]
        positive = sum(score[i, i, k] for k in bag)
        row = sum(score[i, j, k] for j in range(ROWS) for k in range(CANDIDATES) if text_mask[j, k])
        column = sum(score[j, i, k] for j in range(ROWS) for k in bag if video_mask[j])
        if symmetric:
            losses[i] = -math.log(positive / row) - math.log(positive / column)
        else:
            losses[i] = -math.log(positive / (row + column))
    return losses


@pytest.mark.parametrize("symmetric", [False, True])
def test_loss_equals_the_loop_over_clips_with_absent_modalities(symmetric: bool) -> None:
    (video, text), (video_mask, text_mask) = make_pair(), make_masks()
    sides = Sides(video, text, video_mask, text_mask)
    loss, _, valid = contrast_alone(sides, SCALE, symmetric=symmetric)
    expected = looped_loss(video, text, video_mask, text_mask, symmetric=symmetric)
    assert valid.nonzero().flatten().tolist() == sorted(expected)
    np.testing.assert_allclose(loss[valid], [expected[i] for i in sorted(expected)], rtol=1e-9)


def output_of(video: Tensor, audio: Tensor, text: Tensor) -> VATTOutput:
    embeddings = {"video_va": video, "video_vt": video, "audio_va": audio, "text_vt": text}
    return VATTOutput(embeddings=embeddings)


def batch_of(video_mask: Tensor, audio_mask: Tensor, text_mask: Tensor) -> Batch:
    return Batch(
        video=torch.zeros(ROWS, 1, 1, 1, 3, dtype=torch.uint8),
        audio=torch.zeros(ROWS, 1),
        text=torch.ones(ROWS, CANDIDATES, 1, dtype=torch.int64),
        video_mask=video_mask,
        audio_mask=audio_mask,
        text_mask=text_mask,
    )


def test_total_is_the_weighted_mean_of_the_pairs_over_valid_rows() -> None:
    (video, text), (video_mask, text_mask) = make_pair(), make_masks()
    audio_mask = torch.tensor([True, False, True, True, True, False])
    config = LossConfig(video_text_weight=3.0)
    output = output_of(video, text[:, 0], text)
    result = ContrastiveLoss(config)(output, batch_of(video_mask, audio_mask, text_mask))
    words = looped_loss(video, text, video_mask, text_mask, symmetric=False).values()
    assert result.losses["video_text"].item() == pytest.approx(sum(words) / len(words), rel=1e-5)
    expected = (result.losses["video_audio"] + 3 * result.losses["video_text"]) / 4
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_loss_of_random_embeddings_is_about_log_2b() -> None:
    # Near-zero similarities: B·K + B·K candidates, K of them positive → log(2B).
    rows, width = 64, 4096
    generator = torch.Generator().manual_seed(0)
    video = F.normalize(torch.randn(rows, width, generator=generator), dim=-1)
    text = F.normalize(torch.randn(rows, 5, width, generator=generator), dim=-1)
    mask = torch.ones(rows, 5, dtype=torch.bool)
    loss, _, _ = contrast_alone(Sides(video, text, mask[:, 0], mask), 1.0, symmetric=False)
    assert loss.mean().item() == pytest.approx(math.log(2 * rows), abs=0.02)


@pytest.mark.parametrize("form", ["asymmetric", "symmetric"])
def test_negatives_get_gradient(form: str) -> None:
    video, text = make_pair()
    text = text.clone().requires_grad_()
    everything = torch.ones(ROWS, dtype=torch.bool), torch.ones(ROWS, CANDIDATES, dtype=torch.bool)
    sides = Sides(video, text, *everything)
    loss, _, _ = contrast_alone(sides, SCALE, symmetric=form == "symmetric")
    loss[0].backward()
    assert bool((text.grad.norm(dim=-1) > 0).all())


def test_absent_captions_get_no_gradient() -> None:
    (video, text), (video_mask, text_mask) = make_pair(), make_masks()
    text = text.clone().requires_grad_()
    output = output_of(video, text[:, 0].detach(), text)
    batch = batch_of(video_mask, video_mask, text_mask)
    ContrastiveLoss(LossConfig())(output, batch).total.backward()
    assert not text.grad[~text_mask].any()
    assert bool(text.grad[0].any())


def test_a_batch_without_any_text_has_a_finite_loss() -> None:
    video, text = make_pair()
    everything = torch.ones(ROWS, dtype=torch.bool)
    output = VATTOutput(embeddings={"video_va": video, "audio_va": text[:, 0]})
    batch = batch_of(everything, everything, torch.zeros(ROWS, CANDIDATES, dtype=torch.bool))
    result = ContrastiveLoss(LossConfig())(output, batch)
    assert result.losses["video_text"].item() == 0
    assert bool(result.accuracies["video_text"].isnan())
    assert bool(result.total.isfinite())


def test_accuracy_counts_clips_whose_own_bag_scores_highest() -> None:
    video, _ = make_pair()
    bags = video[:, None].repeat(1, CANDIDATES, 1)
    bags[[0, 1]] = bags[[1, 0]]  # two clips get each other's captions
    everything = torch.ones(ROWS, dtype=torch.bool)
    result = ContrastiveLoss(LossConfig())(
        output_of(video, video, bags),
        batch_of(everything, everything, torch.ones(ROWS, CANDIDATES, dtype=torch.bool)),
    )
    assert result.accuracies["video_audio"].item() == 1
    assert result.accuracies["video_text"].item() == pytest.approx(4 / 6)


def test_mixed_precision_does_not_reach_the_loss() -> None:
    (video, text), (video_mask, text_mask) = make_pair(), make_masks()
    output = output_of(video.float(), text[:, 0].float(), text.float())
    batch = batch_of(video_mask, video_mask, text_mask)
    loss = ContrastiveLoss(LossConfig())
    exact = loss(output, batch).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(output, batch).total.item() == exact.item()


def test_a_learned_temperature_comes_back_from_its_bound() -> None:
    (video, text), (video_mask, text_mask) = make_pair(), make_masks()
    loss = ContrastiveLoss(LossConfig(learn_temperature=True))
    loss.log_scale.data.fill_(9.0)
    output, batch = output_of(video, text[:, 0], text), batch_of(video_mask, video_mask, text_mask)
    result = loss(output, batch)
    result.total.backward()
    assert result.temperatures["video_audio"].item() == pytest.approx(0.01)
    assert bool(loss.log_scale.grad.all())


def test_temperature_learns_only_when_asked() -> None:
    assert not ContrastiveLoss(LossConfig()).log_scale.requires_grad
    assert ContrastiveLoss(LossConfig(learn_temperature=True)).log_scale.requires_grad


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, "must be positive"),
        ({"video_audio_weight": 0.0, "video_text_weight": 0.0}, "must be positive"),
        ({"form": "symetric"}, "loss.form must be one of 'asymmetric', 'symmetric'"),
        ({"temperature": 0.005, "learn_temperature": True}, "starts at 0.01 or above"),
    ],
)
def test_loss_config_refuses_values_without_a_loss(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**values)


@pytest.mark.parametrize("form", ["asymmetric", "symmetric", "sigmoid"])
@pytest.mark.parametrize("chunk_clips", [1, 4])
def test_chunks_of_columns_change_neither_losses_nor_gradients(
    monkeypatch: pytest.MonkeyPatch, form: str, chunk_clips: int
) -> None:
    def run() -> list[Tensor]:
        (video, text), masks = make_pair(), make_masks()
        video[3] = -video[3]  # a row whose own bag is not the best
        leaves = video.requires_grad_(), text.requires_grad_()
        scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
        sides = Sides(*leaves, *masks)
        # rows 2 to 4 are this rank's
        local = Sides(*(side[2:5] for side in sides))
        if form == "sigmoid":
            rows = contrast_sigmoid(local, sides, 2, scale, scale - 20)
        else:
            rows = contrast(local, sides, 2, scale, symmetric=form == "symmetric")
        rows.losses[rows.valid].sum().backward()
        return [rows.losses[rows.valid], rows.correct, scale.grad, *(x.grad for x in leaves)]

    whole = run()
    monkeypatch.setattr("vatt.network.contrast.CHUNK_CLIPS", chunk_clips)
    for actual, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
