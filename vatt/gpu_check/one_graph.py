"""Stage `one-graph`: what saves memory, and compiling, leave the gradients as they are."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vatt.batch import Batch, MicroBatches
from vatt.gpu_check.batches import full_batch
from vatt.gpu_check.figures import Row
from vatt.gpu_check.gradients import distances, small_models, step_values, with_draws
from vatt.gpu_check.place import Place
from vatt.gpu_check.recipes import augmentation
from vatt.network.model import VATT, VATTOutput
from vatt.training.accumulation import forward_cached
from vatt.training.compute import checkpoint_activations, compile_towers

CLIPS, PART = 12, 4
# Graphs with and without gradients round to bf16 in other places, a percent in all; other draws of
# dropout would be tens of percent off.
MOST = 5e-2


def measure_one_graph(place: Place) -> Iterator[Row]:
    """Micro-batches, recomputed activations and compiled blocks against one graph without them.

    All with random changes of the clips, dropout, DropToken and bf16 by autocast. The features come
    from the first pass over micro-batches, the gradients from the second.
    """
    change = augmentation("tiny", place.device)
    compiled = partial(compile_towers, backend=place.backend)
    models = small_models(quick=place.quick)
    del models["spectrogram"]  # it is no part of what is recomputed or compiled
    for name, config in models.items():
        config = with_draws(config, dropout=0.1, drop_token=0.5)
        step = partial(step_values, config, device=place.device, autocast=True)
        torch.manual_seed(1)
        parts = replace(MicroBatches.split(full_batch(config, CLIPS), PART), change=change)
        for case, prepare in ((name, ()), (f"{name}, compiled", (compiled,))):
            torch.compiler.reset()
            expected = step(parts, forward=forward_in_one_graph, prepare=prepare)
            actual = step(parts, forward=forward_cached, prepare=prepare)
            yield _furthest(case, "micro-batches", actual, expected)
            recomputed = (checkpoint_activations, *prepare)
            actual = step(parts, forward=forward_in_one_graph, prepare=recomputed)
            yield _furthest(case, "recomputed activations", actual, expected)
            if not prepare:  # compiled blocks choose what to keep
                selective = [partial(checkpoint_activations, kind="selective")]
                actual = step(parts, forward=forward_in_one_graph, prepare=selective)
                yield _furthest(case, "selective activations", actual, expected)
        seen: list[Tensor] = []
        step(replace(parts, change=_noting(change, seen)), forward=forward_cached)
        yield Row(name, "pixels that differ between passes", _num_other(seen), at_most=0)


def forward_in_one_graph(network: VATT, batches: MicroBatches) -> VATTOutput:
    """All micro-batches in one graph, with the random numbers of `forward_cached`."""
    seeds = torch.randint(2**62, (len(batches.parts),)).tolist()
    parts: dict[str, list[Tensor]] = {}
    for batch, seed in zip(batches, seeds, strict=True):
        torch.manual_seed(seed)
        for name, rows in network.encode_batch(batch).items():
            parts.setdefault(name, []).append(rows)
        torch.clear_autocast_cache()  # gradients of parts add up in float32
    return network.embed_rows({n: torch.cat(rows) for n, rows in parts.items()}, batches.masks)


def _furthest(case: str, what: str, actual: Any, expected: Any) -> Row:
    """The value of a step that is furthest off."""
    apart = distances(actual, expected)
    worst = max(apart, key=lambda part: apart[part])
    return Row(case, f"{what}: {worst}, off", apart[worst], at_most=MOST)


def _noting(change: Callable[[Batch], Batch], seen: list[Tensor]) -> Callable[[Batch], Batch]:
    """The change; also notes the changed pictures."""

    def noted(batch: Batch) -> Batch:
        changed = change(batch)
        assert changed.video is not None
        seen.append(changed.video)
        return changed

    return noted


def _num_other(seen: list[Tensor]) -> int:
    """Pixels of the forward pass that the backward pass saw otherwise."""
    half = len(seen) // 2
    return sum(
        int(one.ne(other).sum()) for one, other in zip(seen[:half], seen[half:], strict=True)
    )
