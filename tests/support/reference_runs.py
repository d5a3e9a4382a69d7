"""What the reference tests run: our model on a pack's inputs, stage by stage, step by step."""

import copy
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from reference_packs import (
    DATA,
    DEAD_GRADIENT,
    ROUNDING_RATIO,
    TOLERANCE,
    Differences,
    Pack,
    Recorder,
    loss_config,
    pair_of,
    sound,
)
from torch import Tensor, nn

from vatt.batch import Batch
from vatt.network.classification_loss import classification_loss
from vatt.network.contrastive_loss import ContrastiveLoss, LossConfig, pair_loss
from vatt.network.model import VATT, backbone_and_head
from vatt.network.tokens import interpolation_matrix
from vatt.training.optim import OptimizerConfig, build_optimizer, clip_gradients


def raw_input(pack: Pack, modality: str) -> Tensor:
    names = {"video": ("in/video", "in/images"), "audio": ("in/audio",), "text": ("in/text",)}
    value = next(pack.io[name] for name in names[modality] if name in pack.io)
    if modality == "text":
        return torch.from_numpy(value).long()
    return sound(value) if modality == "audio" else torch.from_numpy(value)


def whole_batch(pack: Pack, **masks: Tensor) -> Batch:
    return pack.batch({m: pack.io[f"in/{m}"] for m in ("video", "audio", "text")}, **masks)


@torch.no_grad()
def intermediates(pack: Pack, modality: str, recorder: Recorder) -> dict[str, Tensor]:
    """What the official code calls the stages of one tower."""
    model, config = pack.model, pack.model.config
    recorder.clear()
    tokens = model.encode_tokens(modality, raw_input(pack, modality))
    encoder = "encoders.shared" if config.arrangement == "agnostic" else f"encoders.{modality}"
    own, out = f"{modality}_tokens", recorder.outputs
    stages = {"final": out.get(f"{encoder}.final_norm", [tokens])[0], "post_proj": tokens}
    stages["features_pooled"] = tokens[:, 0]
    for number in range(config.tower(modality).num_layers):
        if f"{encoder}.blocks.{number}" in out:
            stages[f"layer_{number}"] = out[f"{encoder}.blocks.{number}"][0]
            stages[f"layer_{number}_mha"] = out[f"{encoder}.blocks.{number}.attention"][0]
    if own in out:
        stages["tokens_plus_pos"] = out[own][0][:, 1:]
    patches = out.get(f"{own}.patch_projection", out.get(f"{own}.embedding"))
    stages["conv"] = stages["raw_to_embeddings"] = patches[0] if patches else tokens
    if f"{own}.pre_projection" in out:
        stages["pre_proj"] = F.gelu(out[f"{own}.pre_projection"][0])
    if f"{own}.positions" in out:
        stages["pos_embedding_ln"] = out[f"{own}.positions"][0]
    if f"{encoder}.blocks.0" in out and modality == "text":
        ids = raw_input(pack, "text")
        mask = F.pad(ids != 0, (1, 0), value=True)
        x = torch.zeros(*mask.shape, 1)
        bias = model.get_submodule(encoder)._score_bias(x, mask)
        stages["position_bias_plus_mask"] = bias.clamp(min=-1e9)
    return stages


def nearest(candidates: list[Tensor], reference: np.ndarray) -> Tensor:
    """The recorded tensor of the same size that comes nearest."""
    same = [value for value in candidates if value.numel() == reference.size]
    assert same, f"nothing of {reference.shape} was recorded"
    flat = torch.from_numpy(reference).flatten()
    return min(same, key=lambda value: float((value.flatten() - flat).abs().max()))


def masks_of(pack: Pack, *, masked: bool) -> dict[str, Tensor]:
    if not masked:
        return {}
    return pack.masks(pack.io["loss/audio_mask"], pack.io["loss/text_mask"])


def check_gradients(pack: Pack, double: VATT) -> None:
    """Our float64 gradients equal the official ones; our float32 ones round no worse than those.

    The last digits of a float32 sum depend on the CPU's vector width; those of float64 lie far
    below any bound here. So what lies between our float64 and the official array is the official
    rounding alone: at most 9.0e-6 of the largest value in the packs of `DATA`, on every CPU.
    """
    ours, precise = (dict(model.named_parameters()) for model in (pack.model, double))
    official, float32, pieces = Differences(), Differences(), {}
    is_added = DATA not in pack.folder.parents  # perhaps of a larger model, which sums more terms
    for name, reference in gradients_of(pack.folder).items():
        part, _ = pack.parts[name]
        assert ours[part.ours].grad is not None, f"{part.ours} has no gradient, {name} has"
        piece = pack.theirs(name, ours[part.ours].grad)
        if re.search(r"/k/bias$", name):
            assert piece.abs().max() <= DEAD_GRADIENT, name
            continue
        exact = pack.theirs(name, precise[part.ours].grad)
        rounding = 2 * float((piece - exact).abs().max()) if is_added else 0.0
        official.add(name, exact, reference, rounding=rounding)
        pieces[name] = piece, exact
    official.check(at_least=20)
    for name, (piece, exact) in pieces.items():
        float32.add(name, piece, exact.numpy(), tolerance=ROUNDING_RATIO * official.worst)
    float32.check()


def in_double(pack: Pack) -> VATT:
    """The pack's model in float64; its inputs become so where they meet the first weights."""
    model = copy.deepcopy(pack.model).double()
    for modality in ("video", "audio"):
        tokens = getattr(model, f"{modality}_tokens")
        if tokens is not None:
            tokens.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return model


def gradients_of(folder: Path) -> dict[str, np.ndarray]:
    (path,) = folder.glob("grads_*.npz")
    return dict(np.load(path))


def classifier_inputs(pack: Pack, values: dict[str, np.ndarray]) -> Batch:
    if "in/images" in values:
        return Batch(video=torch.from_numpy(values["in/images"]))
    return Batch(audio=sound(values["in/audio"]))


def optimizer_of(settings: dict, state: dict[str, Tensor]) -> OptimizerConfig:
    train = settings.get("train", {})
    clips = {
        "clip_backbone": train.get("gradient_clip_norm") or None,
        "clip_head": train.get("gradient_clip_norm_cls") or None,
    }
    adam = any(name.startswith("exp_avg") for name in state)
    return OptimizerConfig(name="adam" if adam else "sgd", **clips)


def training_loss(pack: Pack, model: VATT, prefix: str) -> tuple[Tensor, dict[str, Tensor]]:
    values = {
        key.removeprefix(f"{prefix}in/"): value
        for key, value in pack.io.items()
        if key.startswith(f"{prefix}in/")
    }
    if pack.is_classifier:
        batch = classifier_inputs(pack, {f"in/{key}": value for key, value in values.items()})
        multi_label = pack.model.config.classifier.multi_label
        targets = torch.from_numpy(values["one_hot"])
        return classification_loss(model(batch).logits, targets, multi_label=multi_label), {}
    # the official code encodes what is absent, too, and a BatchNorm of audio and text sees it
    output = model(pack.batch(values))
    masks = pack.masks(pack.io["audio_mask"], pack.io["text_mask"])
    result = ContrastiveLoss(loss_config(pack.settings))(output, pack.batch(values, **masks))
    return result.total, result.losses


def weighted(pack: Pack, losses: dict[str, Tensor], name: str) -> Tensor:
    """The loss of a pair as the official code logs it, multiplied by its weight."""
    pair = pair_of(name)
    return losses[pair] * loss_config(pack.settings).weights[pair]


def train(
    pack: Pack, model: VATT, config: OptimizerConfig, differences: Differences
) -> tuple[torch.optim.Optimizer, list[float]]:
    """Makes the steps of a pack; compares the losses, gives the optimiser and the rates.

    From the second moving step on, losses are those of weights that rounding has moved.
    """
    optimizer = build_optimizer(model.train(), config)
    num_steps = sum(1 for key in pack.io if re.fullmatch(r"step\d+/lr", key))
    rates = [float(pack.io[f"step{step}/lr"]) for step in range(num_steps)]
    for step, rate in enumerate(rates):
        loss, losses = training_loss(pack, model, f"step{step}/")
        rounding = 5e-5 * loss.item() if step else 0.0
        key = f"step{step}/total_loss"
        differences.add(key, loss, pack.io[key], rounding=rounding)
        for key in [key for key in pack.io if re.match(rf"step{step}/bridge_losses/.*_nce/", key)]:
            ours = weighted(pack, losses, key.rpartition("/")[2])
            differences.add(key, ours, pack.io[key], rounding=rounding)
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(*backbone_and_head(model), config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return optimizer, rates


def dead_weights(pack: Pack, double: VATT) -> dict[str, Tensor]:
    """Where each official variable has no gradient in exact arithmetic, bool of its shape.

    Keys' biases have none, nor has a bias before a BatchNorm, nor what a ReLU shuts for the whole
    batch. What rounding leaves there, Adam makes steps of.
    """
    weights = dict(double.named_parameters())
    gradients = {
        name: weights[part.ours].grad
        for name, (part, _) in pack.parts.items()
        if part.ours in weights
    }
    return {
        name: pack.theirs(name, gradient).abs() <= 1e-10
        for name, gradient in gradients.items()
        if gradient is not None
    }


def check_moments(
    pack: Pack,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Tensor],
    dead: dict[str, Tensor],
) -> None:
    """What the optimiser carries along: sums of the gradients of all steps, with their rounding."""
    parameters, differences = dict(pack.model.named_parameters()), Differences()
    rounding_only = {pack.parts[name][0].ours for name, where in dead.items() if where.any()}
    for name, reference in state.items():
        kind, _, parameter = name.partition(".")
        if parameter in rounding_only or parameters.get(parameter) not in optimizer.state:
            continue
        ours = optimizer.state[parameters[parameter]][kind]
        differences.add(name, ours, reference.numpy(), tolerance=1e-3)
    differences.check(at_least=20)


def official_losses(
    values: dict[str, np.ndarray],
    embeddings: dict[str, Tensor],
    form: str,
    mask: str,
    *,
    with_audio_text: bool,
) -> dict[str, tuple[Tensor, float]]:
    """Loss of each pair with its weight, by official name."""
    config = LossConfig(form=form.removesuffix("_nce"), official_masking=True)
    rows = len(embeddings["video/toaud"])
    everything = np.ones(rows, dtype=np.float32)
    audio_mask, text_mask = (
        torch.from_numpy(values.get(f"mask/{mask}/{name}_mask", everything)) > 0
        for name in ("audio", "text")
    )
    video_mask = torch.ones(rows, dtype=torch.bool)
    text_masks = text_mask[:, None].expand(-1, len(embeddings["text/tovid"]) // rows)
    bags = {to: embeddings[f"text/{to}"].unflatten(0, (rows, -1)) for to in ("tovid", "toaud")}
    scale = torch.tensor(1 / config.start_temperature)

    def loss(first: str, second: Tensor, first_mask: Tensor, second_mask: Tensor) -> Tensor:
        return pair_loss(config, embeddings[first], second, first_mask, second_mask, scale)[0]

    sounds = embeddings["audio/tovid"]
    losses = {
        "vidtxt_loss": (loss("video/totxt", bags["tovid"], video_mask, text_masks), 1.0),
        "vidaud_loss": (loss("video/toaud", sounds, video_mask, audio_mask), 1.0),
    }
    if with_audio_text:
        weight = values.get(f"weight/{form}/audtxt", 1.0)
        losses["audtxt_loss"] = (loss("audio/totxt", bags["toaud"], audio_mask, text_masks), weight)
    return losses


@torch.no_grad()
def on_another_grid(pack: Pack, kind: str, values: dict[str, np.ndarray]) -> Differences:
    """Tokens and features of an input whose grid is not that of the tables.

    The official spline is float32 and far from its own table where it should hit it
    (`check_spline`): where a pack has its tables on the new grid, these are put in.
    """
    differences, model = Differences(), copy.deepcopy(pack.model)
    modality = "video" if kind == "video" else "audio"
    raw = values[f"{kind}/in"]
    inputs = torch.from_numpy(raw) if modality == "video" else sound(raw)
    tokens = getattr(model, f"{modality}_tokens")
    axes = ("temporal", "vertical", "horizontal") if kind == "video" else ("temporal", "spectoral")
    for number, axis in enumerate(axes[: len(tokens.positions.tables)]):
        name = f"{kind}/expanded_{axis}" if kind == "video" else f"{kind}/expanded"
        if name in values:
            check_spline(differences, name, tokens.positions.tables[number], values[name])
            tokens.positions.tables[number] = nn.Parameter(torch.from_numpy(values[name]))
    with_positions = tokens(inputs)[0][:, 1:]
    differences.add("tokens_plus_pos", with_positions, values[f"{kind}/tokens_plus_pos"])
    pooled = getattr(model, f"encode_{modality}")(inputs)
    differences.add("features_pooled", pooled, values[f"{kind}/features_pooled"])
    return differences


def check_spline(differences: Differences, name: str, table: Tensor, official: np.ndarray) -> None:
    """Our spline against the official one, within what that one misses its own table by.

    Where a query falls on an entry of the table, the spline is that entry in exact arithmetic; ours
    is. Between them the official rounding is up to four times as large, in all packs at hand.
    """
    num_from, num_to = len(table), len(official)
    ours = interpolation_matrix(num_from, num_to) @ table
    hits = [(j, j * num_from // num_to) for j in range(num_to) if j * num_from % num_to == 0]
    missed = max(np.abs(official[j] - table[i].detach().numpy()).max() for j, i in hits)
    for j, i in hits:
        torch.testing.assert_close(ours[j], table[i], rtol=1e-5, atol=1e-5)
    tolerance = max(TOLERANCE, 4 * missed / np.abs(official).max())
    differences.add(name, ours, official, tolerance=tolerance)
