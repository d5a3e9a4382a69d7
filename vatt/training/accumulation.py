"""Contrastive batches larger than memory: encoders get micro-batches, heads and loss the batch.

Accumulating gradients of small batches would contrast each clip with few others. Instead, the
encoders run twice: first without a graph, for the features of all clips; then per micro-batch, with
the gradients of heads and loss for these features. Source: Gao et al., "Scaling deep contrastive
learning batch size under memory limited setup", RepL4NLP 2021. Shape legend in `vatt.batch`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vatt.batch import MicroBatches
from vatt.network.model import ContrastiveNetwork, VATTOutput, backbone_and_head
from vatt.system.ranks import world_size
from vatt.training.rank_forward import no_row


def forward_cached(network: ContrastiveNetwork, batches: MicroBatches) -> VATTOutput:
    """Output of the network for all clips, with the activations of one micro-batch at a time.

    Each micro-batch has a seed for all random numbers of the encoders, which are drawn again for
    the gradient. The gradients of all weights arrive together, so DDP exchanges them once per step.

    Args:
        network: Network in training mode.
        batches: Micro-batches; they are read twice and not moved.
    """
    masks, facts = batches.masks, batches.facts
    modalities = tuple(name for name in network.config.modalities if facts.num_rows(name))
    replay = Replay(network, batches, modalities)
    features = dict(zip(modalities, _Cached.apply(replay, *replay.weights), strict=True))
    if world_size() > 1:  # all ranks call all heads
        for name in network.config.modalities:
            if name not in features:
                features[name] = torch.zeros(0, network.feature_width(name))
                features[name] = features[name].to(batches.device)
                masks.setdefault(name, no_row(len(batches), name, batches.device))
    return network.embed_rows(features, masks)


class Replay:
    """Encodes micro-batches, any number of times with the same random numbers.

    Args:
        network: Network with the encoders.
        batches: Micro-batches to encode.
        modalities: Modalities that any micro-batch has.
    """

    def __init__(
        self, network: ContrastiveNetwork, batches: MicroBatches, modalities: Sequence[str]
    ) -> None:
        self.network = network
        self.batches = batches
        self.modalities = modalities
        backbone, _ = backbone_and_head(network)
        self.weights = [weight for weight in backbone if weight.requires_grad]
        self.seeds = torch.randint(2**62, (len(batches.parts),)).tolist()
        self.device = batches.device
        self.autocast = torch.is_autocast_enabled(self.device.type)
        self.autocast_dtype = torch.get_autocast_dtype(self.device.type)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Features `[rows, D]` of each micro-batch in turn, of the modalities that it has."""
        batches = iter(self.batches)
        for seed in self.seeds:
            with self._same_draws(seed), self._same_precision():
                features = self.network.encode_batch(next(batches))
            yield features

    @contextmanager
    def _same_draws(self, seed: int) -> Iterator[None]:
        devices = [] if self.device.type == "cpu" else [self.device]
        with torch.random.fork_rng(devices, device_type=self.device.type):
            torch.manual_seed(seed)
            yield

    @contextmanager
    def _same_precision(self) -> Iterator[None]:
        """Autocast of the forward pass; it must not cache weights of another graph."""
        kind, dtype = self.device.type, self.autocast_dtype
        with torch.autocast(kind, dtype=dtype, enabled=self.autocast):
            yield
        torch.clear_autocast_cache()


class _Cached(torch.autograd.Function):
    """Function from weights to features of all micro-batches; stores only the features."""

    @staticmethod
    def forward(ctx: Any, replay: Replay, *weights: Tensor) -> tuple[Tensor, ...]:
        parts: dict[str, list[Tensor]] = {name: [] for name in replay.modalities}
        for features in replay:
            for name, rows in features.items():
                parts[name].append(rows)
        ctx.replay = replay
        ctx.num_rows = {name: [len(rows) for rows in part] for name, part in parts.items()}
        return tuple(torch.cat(part) for part in parts.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        replay: Replay = ctx.replay
        rest = {
            name: iter(gradient.split(ctx.num_rows[name]))
            for name, gradient in zip(replay.modalities, gradients, strict=True)
        }
        sums: list[Tensor] = []
        with torch.enable_grad():
            for features in replay:
                given = [next(rest[name]) for name in features]
                parts = torch.autograd.grad(
                    list(features.values()), replay.weights, given, materialize_grads=True
                )
                if sums:
                    torch._foreach_add_(sums, parts)
                else:
                    sums = list(parts)
        return None, *sums
