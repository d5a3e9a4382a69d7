"""Gradients of one training step by part of the network, and how far two of them are apart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vatt.batch import Batch, MicroBatches
from vatt.config.geometry import SpectrogramConfig
from vatt.config.model import VATTConfig
from vatt.config.presets import preset
from vatt.network.contrastive_loss import ContrastiveLoss, LossConfig
from vatt.network.model import VATT, VATTOutput

LEAST_NORM = (
    1e-3  # of all gradients; a part with less, such as a bias before BatchNorm, is rounding
)


def small_models(*, quick: bool) -> dict[str, VATTConfig]:
    """Models by name: tiny ones of each kind, and one block of the Base size on whole clips."""
    tiny, base = preset("tiny"), preset("ma-base")
    assert base.encoder is not None
    spectrogram = SpectrogramConfig(
        window_samples=1024, hop_samples=128, num_mels=10, max_hertz=4000.0, patch_size=(10, 5)
    )
    models = {
        "agnostic": tiny,
        "specific": replace(tiny, arrangement="specific"),
        "spectrogram": replace(tiny, audio=replace(tiny.audio, spectrogram=spectrogram)),
    }
    if not quick:
        models["one Base block"] = replace(base, encoder=replace(base.encoder, num_layers=1))
    return models


def with_draws(config: VATTConfig, *, dropout: float, drop_token: float) -> VATTConfig:
    """A model with given rates of dropout in all encoders, and of DropToken."""
    names = ("encoder", "video_encoder", "audio_encoder", "text_encoder")
    encoders = {name: getattr(config, name) for name in names}
    changed = {n: replace(e, dropout=dropout) for n, e in encoders.items() if e is not None}
    return replace(config, drop_token=drop_token, **changed)


def step_values(
    config: VATTConfig,
    batch: Batch | MicroBatches,
    device: torch.device,
    *,
    forward: Callable[[VATT, Any], VATTOutput],
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    loss_config: LossConfig | None = None,
    prepare: Sequence[Callable[[VATT], None]] = (),
) -> dict[str, Tensor]:
    """Loss, embeddings, features and gradients of a step of a new network, in float64 on the CPU.

    Args:
        config: Model; the same one gets the same weights on every device.
        batch: Clips.
        device: Device of the step.
        forward: Forward pass of the network.
        dtype: Dtype of the weights.
        autocast: Whether the forward pass runs in bfloat16 by autocast.
        loss_config: Loss. None: a fixed weighted sum of the features; BatchNorm over few random
            clips, which are much alike, would enlarge the rounding of bfloat16 a hundred times.
        prepare: Changes of the network before the step, such as compiling.
    """
    torch.manual_seed(0)
    network = VATT(config).to(device, dtype).train()
    for change in prepare:
        change(network)
    torch.manual_seed(7)
    batch = batch.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        output = forward(network, batch)
    features = _joined(output.features)
    values = {"features": features}
    if loss_config is None:
        total = features.float() @ torch.linspace(-1, 1, len(features), device=device)
    else:
        loss = ContrastiveLoss(loss_config).to(device, dtype)
        total = loss(output, batch).total
        values |= {"loss": total, "embeddings": _joined(output.embeddings)}
    total.backward()
    return {n: v.detach().cpu().double() for n, v in (values | _gradients(network)).items()}


def _gradients(network: nn.Module) -> dict[str, Tensor]:
    """Gradients by part of the network, `video_tokens`, `encoders.video`, …, each as one row."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, weight in network.named_parameters():
        first, second, *_ = name.split(".")
        part = f"{first}.{second}" if first in ("encoders", "post_projections") else first
        if weight.grad is not None:
            parts.setdefault(f"gradient of {part}", {})[name] = weight.grad
    return {part: _joined(gradients) for part, gradients in parts.items()}


def _joined(values: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([values[name].flatten() for name in sorted(values)])


def distances(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Norm of the difference relative to the norm of what is expected, by name."""
    gradients = [value.norm() for name, value in expected.items() if name.startswith("gradient")]
    least = LEAST_NORM * float(torch.stack(gradients).norm())
    return {
        name: float((actual[name] - value).norm())
        / max(float(value.norm()), least if name.startswith("gradient") else 0.0)
        for name, value in expected.items()
    }
