"""The contrastive losses in every form, for every pair of modalities, against loops over clips."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.batch import Batch
from vatt.config.model import HeadConfig
from vatt.config.presets import preset
from vatt.errors import UserError
from vatt.network.contrast import Rows, Sides, contrast, contrast_sigmoid
from vatt.network.contrastive_loss import PAIRS, ContrastiveLoss, LossConfig
from vatt.network.model import VATT, VATTOutput
from vatt.training.optim import OptimizerConfig, ScheduleConfig
from vatt.training.pretrain import PretrainModule

ROWS, CANDIDATES, WIDTH = 5, 3, 8
FORMS = ("asymmetric", "symmetric", "sigmoid")
VIDEO_MASK = torch.tensor([True, True, False, True, True])
AUDIO_MASK = torch.tensor([True, False, True, True, True])
TEXT_MASK = torch.ones(ROWS, CANDIDATES, dtype=torch.bool)
TEXT_MASK[1], TEXT_MASK[3, 1:] = False, False


def unit_vectors(num_candidates: int = CANDIDATES, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    second = torch.randn(ROWS, num_candidates, WIDTH, generator=generator, dtype=torch.float64)
    return F.normalize(first, dim=-1), F.normalize(second, dim=-1)


def output_of(space: str = "fac", seed: int = 0) -> VATTOutput:
    """Leaf embeddings in all spaces of a head, not normalised."""
    generator = torch.Generator().manual_seed(seed)
    names = (
        ["video_va", "video_vt", "audio_va", "text_vt"]
        if space == "fac"
        else ["video_joint", "audio_joint", "text_joint"]
    )
    shape = {"video": (ROWS,), "audio": (ROWS,), "text": (ROWS, CANDIDATES)}
    return VATTOutput(
        embeddings={
            name: torch.randn(
                *shape[name.split("_")[0]], WIDTH, generator=generator
            ).requires_grad_()
            for name in names
        }
    )


def batch_of(video: Tensor | None, audio: Tensor | None, text: Tensor | None) -> Batch:
    """Clips whose modalities have these masks; None: the batch lacks them."""
    return Batch(
        video=None if video is None else torch.zeros(ROWS, 1, 1, 1, 3, dtype=torch.uint8),
        audio=None if audio is None else torch.zeros(ROWS, 1),
        text=None if text is None else torch.ones(ROWS, CANDIDATES, 1, dtype=torch.int64),
        video_mask=video,
        audio_mask=audio,
        text_mask=text,
    )


def everything() -> Batch:
    return batch_of(VIDEO_MASK | True, AUDIO_MASK | True, TEXT_MASK | True)


def looped(
    first: np.ndarray, second: np.ndarray, first_mask: Tensor, second_mask: Tensor, form: str
) -> dict[int, float]:
    """Losses of the clips that have both modalities, by the formulas of the papers.

    The asymmetric form counts positives twice in its one denominator; in the sigmoid form a bag
    weighs as much as one candidate.
    """
    similarity, losses = np.einsum("id,jkd->ijk", first, second), {}
    has, words = first_mask.numpy(), second_mask.numpy()
    for i in np.nonzero(has & words.any(axis=1))[0].tolist():
        if form == "sigmoid":
            sign = np.where(np.arange(ROWS) == i, 1, -1)[:, None]
            terms = np.log1p(np.exp(-sign * (10 * similarity[i] - 10))) * words
            losses[i] = (terms / words.sum(axis=1, keepdims=True).clip(min=1)).sum()
            continue
        score = np.exp(similarity / 0.07)
        positive = score[i, i][words[i]].sum()
        row, column = score[i][words].sum(), score[has, i][:, words[i]].sum()
        losses[i] = math.log((row + column) / positive)
        if form == "symmetric":
            losses[i] = math.log(row / positive) + math.log(column / positive)
    return losses


def contrast_of(form: str, local: Sides, everyone: Sides, first_row: int, scale: Tensor) -> Rows:
    if form == "sigmoid":
        return contrast_sigmoid(local, everyone, first_row, scale, scale * 0 - 10)
    return contrast(local, everyone, first_row, scale, symmetric=form == "symmetric")


@pytest.mark.parametrize("form", FORMS)
def test_losses_equal_the_loop_with_absent_rows_and_captions(form: str) -> None:
    first, second = unit_vectors()
    scale = torch.tensor(10.0 if form == "sigmoid" else 1 / 0.07, dtype=torch.float64)
    sides = Sides(first, second, VIDEO_MASK, TEXT_MASK)
    rows = contrast_of(form, sides, sides, 0, scale)
    expected = looped(first.numpy(), second.numpy(), VIDEO_MASK, TEXT_MASK, form)
    assert rows.valid.nonzero().flatten().tolist() == sorted(expected) == [0, 3, 4]
    np.testing.assert_allclose(rows.losses[rows.valid], list(expected.values()), rtol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_has_the_mean_of_its_valid_rows_and_the_total_is_their_weighted_mean(
    form: str, pair: str
) -> None:
    output, masks = output_of("joint"), {"video": VIDEO_MASK, "audio": AUDIO_MASK}
    weights = {f"{name}_weight": 3.0 if name == pair else 1.0 for name in PAIRS}
    batch = batch_of(VIDEO_MASK, AUDIO_MASK, TEXT_MASK)
    result = ContrastiveLoss(LossConfig(form=form, **weights))(output, batch)
    first, second = (
        F.normalize(output.embeddings[f"{name}_joint"].detach().double(), dim=-1).numpy()
        for name in PAIRS[pair][:2]
    )
    second_mask = TEXT_MASK
    if PAIRS[pair].second != "text":
        second, second_mask = second[:, None], masks[PAIRS[pair].second][:, None]
    losses = looped(first, second, masks[PAIRS[pair].first], second_mask, form)
    expected = sum(losses.values()) / len(losses)
    assert result.losses[pair].item() == pytest.approx(expected, rel=1e-5)
    total = (sum(result.losses.values()) + 2 * result.losses[pair]) / 5
    assert result.total.item() == pytest.approx(total.item(), rel=1e-6)


def test_loss_of_random_embeddings_is_about_log_2b() -> None:
    # Near-zero similarities: B·K + B·K candidates, K of them positive → log(2B).
    rows, width = 64, 4096
    generator = torch.Generator().manual_seed(0)
    video = F.normalize(torch.randn(rows, width, generator=generator), dim=-1)
    text = F.normalize(torch.randn(rows, 5, width, generator=generator), dim=-1)
    mask = torch.ones(rows, 5, dtype=torch.bool)
    sides = Sides(video, text, mask[:, 0], mask)
    loss, _, _ = contrast(sides, sides, 0, torch.tensor(1.0), symmetric=False)
    assert loss.mean().item() == pytest.approx(math.log(2 * rows), abs=0.02)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_clips", [1, 4])
def test_chunks_of_columns_change_neither_losses_nor_gradients(
    monkeypatch: pytest.MonkeyPatch, form: str, chunk_clips: int
) -> None:
    def run() -> list[Tensor]:
        first, second = unit_vectors()
        first[3] = -first[3]  # a row whose own bag is not the best
        leaves = first.requires_grad_(), second.requires_grad_()
        scale = torch.tensor(14.0, dtype=torch.float64, requires_grad=True)
        sides = Sides(*leaves, VIDEO_MASK, TEXT_MASK)
        local = Sides(*(side[2:4] for side in sides))  # rows 2 and 3 are this rank's
        rows = contrast_of(form, local, sides, 2, scale)
        rows.losses[rows.valid].sum().backward()
        return [rows.losses[rows.valid], rows.correct, scale.grad, *(x.grad for x in leaves)]

    whole = run()
    monkeypatch.setattr("vatt.network.contrast.CHUNK_CLIPS", chunk_clips)
    for actual, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_absent_captions_get_no_gradient() -> None:
    output = output_of()
    batch = batch_of(VIDEO_MASK, AUDIO_MASK, TEXT_MASK)
    ContrastiveLoss(LossConfig())(output, batch).total.backward()
    gradient = output.embeddings["text_vt"].grad
    assert not gradient[~TEXT_MASK].any()
    assert bool(gradient[0].any())


def test_accuracy_counts_clips_whose_own_bag_scores_highest() -> None:
    output = output_of()
    video = output.embeddings["video_vt"].detach()
    bags = video[:, None].repeat(1, CANDIDATES, 1)
    bags[[0, 1]] = bags[[1, 0]]  # two clips get each other's captions
    output.embeddings |= {"video_va": video, "audio_va": video, "text_vt": bags}
    result = ContrastiveLoss(LossConfig())(output, everything())
    assert result.accuracies["video_audio"].item() == 1
    assert result.accuracies["video_text"].item() == pytest.approx(3 / 5)


def test_mixed_precision_does_not_reach_the_loss() -> None:
    output, batch = output_of(), batch_of(VIDEO_MASK, AUDIO_MASK, TEXT_MASK)
    loss = ContrastiveLoss(LossConfig())
    exact = loss(output, batch).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(output, batch).total.item() == exact.item()


def test_a_learned_temperature_comes_back_from_its_bound() -> None:
    loss = ContrastiveLoss(LossConfig(learn_temperature=True))
    loss.log_scale.data.fill_(9.0)
    result = loss(output_of(), batch_of(VIDEO_MASK, AUDIO_MASK, TEXT_MASK))
    result.total.backward()
    assert result.temperatures["video_audio"].item() == pytest.approx(0.01)
    assert bool(loss.log_scale.grad.all())


def test_the_sigmoid_form_of_two_vectors_a_clip_is_equation_1_of_siglip() -> None:
    output = output_of()
    config = LossConfig(form="sigmoid", video_text_weight=0.0)
    actual = ContrastiveLoss(config)(output, everything()).total.item()
    x = F.normalize(output.embeddings["video_va"].detach().double(), dim=-1).numpy()
    y = F.normalize(output.embeddings["audio_va"].detach().double(), dim=-1).numpy()
    z = 2 * np.eye(ROWS) - 1
    expected = -np.log(1 / (1 + np.exp(z * (-10 * x @ y.T + 10)))).sum() / ROWS
    assert actual == pytest.approx(expected, rel=1e-5)


def test_scale_and_bias_of_the_sigmoid_form_start_as_in_siglip_and_learn() -> None:
    loss = ContrastiveLoss(LossConfig(form="sigmoid"))
    assert loss.bias is not None
    torch.testing.assert_close(loss.log_scale.detach(), torch.full((2,), math.log(10)))
    torch.testing.assert_close(loss.bias.detach(), torch.full((2,), -10.0))
    result = loss(output_of(), everything())
    assert {name: value.item() for name, value in result.biases.items()} == {
        "video_audio": -10,
        "video_text": -10,
    }
    assert result.temperatures["video_text"].item() == pytest.approx(0.1)
    result.total.backward()
    assert bool(loss.log_scale.grad.all())
    assert bool(loss.bias.grad.all())


def test_scale_and_bias_of_the_sigmoid_form_can_be_held() -> None:
    loss = ContrastiveLoss(LossConfig(form="sigmoid", learn_temperature=False, temperature=0.2))
    assert [p for p in loss.parameters() if p.requires_grad] == []
    result = loss(output_of(), everything())
    assert result.temperatures["video_audio"].item() == pytest.approx(0.2)


@pytest.mark.parametrize("form", ["asymmetric", "symmetric"])
def test_nce_forms_have_no_bias(form: str) -> None:
    loss = ContrastiveLoss(LossConfig(form=form))
    assert loss.bias is None
    assert loss(output_of(), everything()).biases == {}


@pytest.mark.parametrize("form", FORMS)
def test_a_joint_model_learns_from_all_three_pairs(form: str) -> None:
    torch.manual_seed(0)
    model = VATT(replace(preset("tiny"), head=HeadConfig(kind="joint", d_joint=8)))
    text = torch.randint(1, 256, (ROWS, CANDIDATES, 5))
    batch = Batch(video=torch.rand(ROWS, 4, 32, 32, 3), audio=torch.rand(ROWS, 6_400), text=text)
    result = ContrastiveLoss(LossConfig(form=form, audio_text_weight=1.0))(model(batch), batch)
    assert list(result.losses) == list(PAIRS)
    total = sum(result.losses.values()) / 3
    torch.testing.assert_close(result.total.detach(), total)
    result.total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_fac_head_has_no_space_for_audio_and_text() -> None:
    loss = ContrastiveLoss(LossConfig(audio_text_weight=1.0))
    message = "the audio-text loss needs the joint head, the model has audio_va, text_vt, video_va"
    with pytest.raises(ValueError, match=message):
        loss(output_of(), everything())


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (
            {},
            {"audio_text_weight": 1.0},
            "loss.audio_text_weight is 1.0, but the fac head has no space for that pair",
        ),
        (
            {"modalities": ("video", "audio")},
            {"video_audio_weight": 0.0},
            "at least one loss weight must be positive",
        ),
        ({"head": None}, {}, "model.head must not be null"),
    ],
)
def test_pretraining_refuses_a_pair_that_never_meets(model: dict, loss: dict, message: str) -> None:
    config = replace(preset("tiny"), **model)
    with pytest.raises(UserError, match=message):
        PretrainModule(config, LossConfig(**loss), OptimizerConfig(), ScheduleConfig())


@pytest.mark.parametrize("form", FORMS)
def test_the_negatives_of_a_single_valid_row_get_gradient(form: str) -> None:
    output = output_of()
    only_first = torch.zeros(ROWS, dtype=torch.bool)
    only_first[0] = True
    loss = ContrastiveLoss(LossConfig(form=form))
    loss(output, batch_of(only_first, AUDIO_MASK, TEXT_MASK)).total.backward()
    audio, text = output.embeddings["audio_va"].grad, output.embeddings["text_vt"].grad
    torch.testing.assert_close(audio.norm(dim=-1) > 0, AUDIO_MASK)
    torch.testing.assert_close(text.norm(dim=-1) > 0, TEXT_MASK)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("absent", ["video", "audio", "text"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_batch_without_one_modality_has_a_finite_loss(
    form: str, absent: str, masked: bool
) -> None:
    output = output_of("joint")
    masks = {"video": VIDEO_MASK | True, "audio": AUDIO_MASK, "text": TEXT_MASK}
    masks[absent] = masks[absent] & False if masked else None
    if masked:  # as the model gives it where some rank-mate has the modality: rows of zeros
        output.embeddings[f"{absent}_joint"] = torch.zeros_like(
            output.embeddings[f"{absent}_joint"]
        ).requires_grad_()
    else:
        del output.embeddings[f"{absent}_joint"]
    config = LossConfig(form=form, audio_text_weight=1.0)
    result = ContrastiveLoss(config)(output, batch_of(**masks))
    for name, pair in PAIRS.items():
        lacks = absent in (pair.first, pair.second)
        assert (result.losses[name].item() == 0) == lacks
        assert bool(result.accuracies[name].isnan()) == lacks
    result.total.backward()
    for value in output.embeddings.values():
        assert value.grad is None or bool(value.grad.isfinite().all())


def test_a_batch_in_which_no_pair_meets_can_still_take_its_backward_step() -> None:
    torch.manual_seed(0)
    model = VATT(preset("tiny")).train()
    batch = Batch(audio=torch.rand(2, 6_400))
    total = ContrastiveLoss(LossConfig())(model(batch), batch).total
    assert total.item() == 0
    total.backward()


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_embeddings_lose_only_their_own_digits(form: str) -> None:
    output, batch = output_of(), batch_of(VIDEO_MASK, AUDIO_MASK, TEXT_MASK)
    rounded = {name: value.detach().bfloat16() for name, value in output.embeddings.items()}
    as_float = {name: value.float() for name, value in rounded.items()}
    loss = ContrastiveLoss(LossConfig(form=form))
    result = loss(VATTOutput(embeddings=rounded), batch)
    assert result.total.dtype == torch.float32
    expected = loss(VATTOutput(embeddings=as_float), batch)
    torch.testing.assert_close(result.total, expected.total, rtol=0, atol=0)


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
        ({"form": "sigmoid", "official_masking": True}, "official_masking is of the NCE forms"),
    ],
)
def test_loss_config_refuses_values_without_a_loss(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**values)
