"""Every pair of modalities in every form of the loss, against loops over clips."""

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
from vatt.network.contrast import Sides, contrast_sigmoid
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


def looped_sigmoid(
    first: np.ndarray, second: np.ndarray, first_mask: Tensor, second_mask: Tensor
) -> dict[int, float]:
    """Every clip against every candidate that is there: a yes for its own bag, else a no."""
    losses = {}
    for i in range(ROWS):
        if not (first_mask[i] and second_mask[i].any()):
            continue
        losses[i] = 0.0
        for j, k in zip(*np.nonzero(second_mask.numpy()), strict=True):
            score = 10 * first[i] @ second[j, k] - 10
            share = 1 / int(second_mask[j].sum())  # a bag weighs as much as one candidate
            losses[i] += share * math.log1p(math.exp(-score if i == j else score))
    return losses


def test_the_sigmoid_form_equals_the_loop_with_absent_rows_and_captions() -> None:
    first, second = unit_vectors()
    scale, bias = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-10.0)
    sides = Sides(first, second, VIDEO_MASK, TEXT_MASK)
    rows = contrast_sigmoid(sides, sides, 0, scale, bias)
    expected = looped_sigmoid(first.numpy(), second.numpy(), VIDEO_MASK, TEXT_MASK)
    assert rows.valid.nonzero().flatten().tolist() == sorted(expected) == [0, 3, 4]
    np.testing.assert_allclose(
        rows.losses[rows.valid], [expected[i] for i in sorted(expected)], rtol=1e-9
    )


def test_the_sigmoid_form_of_two_vectors_a_clip_is_equation_1_of_siglip() -> None:
    output = output_of()
    config = LossConfig(form="sigmoid", video_text_weight=0.0)
    actual = ContrastiveLoss(config)(output, everything()).total.item()
    x = F.normalize(output.embeddings["video_va"].detach().double(), dim=-1).numpy()
    y = F.normalize(output.embeddings["audio_va"].detach().double(), dim=-1).numpy()
    z = 2 * np.eye(ROWS) - 1
    expected = -np.log(1 / (1 + np.exp(z * (-10 * x @ y.T + 10)))).sum() / ROWS
    assert actual == pytest.approx(expected, rel=1e-5)


def test_the_sigmoid_form_is_the_mean_over_the_rows_that_have_both() -> None:
    output = output_of()
    config = LossConfig(form="sigmoid", video_audio_weight=0.0)
    result = ContrastiveLoss(config)(output, batch_of(VIDEO_MASK, None, TEXT_MASK))
    first, second = (
        F.normalize(output.embeddings[name].detach().double(), dim=-1).numpy()
        for name in ("video_vt", "text_vt")
    )
    losses = looped_sigmoid(first, second, VIDEO_MASK, TEXT_MASK).values()
    assert result.total.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


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


def looped_nce(first: np.ndarray, second: np.ndarray, *, symmetric: bool) -> float:
    """Mean over clips that have sound and words; positives stand twice in one denominator."""
    score = np.exp(np.einsum("id,jkd->ijk", first, second) / 0.07)
    audio, words = AUDIO_MASK.numpy(), TEXT_MASK.numpy()
    losses = []
    for i in np.nonzero(audio & words.any(axis=1))[0]:
        positive = score[i, i][words[i]].sum()
        row, column = score[i][words].sum(), score[audio, i][:, words[i]].sum()
        if symmetric:
            losses.append(math.log(row / positive) + math.log(column / positive))
        else:
            losses.append(math.log((row + column) / positive))
    return float(np.mean(losses))


@pytest.mark.parametrize("form", FORMS)
def test_the_audio_text_pair_of_the_joint_head_equals_the_loop(form: str) -> None:
    output = output_of("joint")
    weights = {"video_audio_weight": 0.0, "video_text_weight": 0.0, "audio_text_weight": 2.0}
    batch = batch_of(VIDEO_MASK, AUDIO_MASK, TEXT_MASK)
    result = ContrastiveLoss(LossConfig(form=form, **weights))(output, batch)
    first, second = (
        F.normalize(output.embeddings[name].detach().double(), dim=-1).numpy()
        for name in ("audio_joint", "text_joint")
    )
    if form == "sigmoid":
        losses = looped_sigmoid(first, second, AUDIO_MASK, TEXT_MASK).values()
        expected = sum(losses) / len(losses)
    else:
        expected = looped_nce(first, second, symmetric=form == "symmetric")
    assert list(result.losses) == ["audio_text"]
    assert result.total.item() == pytest.approx(expected, rel=1e-5)


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
            {},
            "loss.video_text_weight is 1.0, but the model has no text: set it to 0",
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


def test_the_official_masking_is_of_the_nce_forms() -> None:
    with pytest.raises(ValueError, match="official_masking is of the NCE forms"):
        LossConfig(form="sigmoid", official_masking=True)
