"""Stage `parity`: a step on the device is that of the CPU in float64."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from vatt.batch import Batch
from vatt.config.model import VATTConfig
from vatt.gpu_check.batches import full_batch
from vatt.gpu_check.figures import Row
from vatt.gpu_check.gradients import distances, small_models, step_values, with_draws
from vatt.gpu_check.place import Place
from vatt.network.contrastive_loss import LossConfig
from vatt.network.tokens import normalize_video
from vatt.preprocess.draws import draw_normals, draw_uniforms
from vatt.preprocess.transforms import jitter_color

MOST_FLOAT32 = 1e-3
MOST_BFLOAT16, MOST_BFLOAT16_GRADIENT = 3e-2, 1e-1  # on a CPU up to 0.014 and 0.044
ROWS = 8
SIGMOID = LossConfig(form="sigmoid", temperature=None, learn_temperature=None, sigmoid_bias=-10.0)


def measure_parity(place: Place) -> Iterator[Row]:
    """Loss, embeddings, gradients and random changes, on the device and on the CPU."""
    # products in TF32 have 10 bits of mantissa, which a comparison with float64 would show
    torch.backends.cudnn.allow_tf32 = False
    yield from _random_changes(place)
    losses = {"published loss": LossConfig(), "sigmoid loss": SIGMOID}
    for name, config in small_models(quick=place.quick).items():
        for loss, loss_config in losses.items() if name == "agnostic" else [*losses.items()][:1]:
            yield from _compared(f"{name}, float32, {loss}", config, place, loss_config)
        yield from _compared(f"{name}, bf16 autocast", config, place, None)


def _compared(
    case: str, config: VATTConfig, place: Place, loss_config: LossConfig | None
) -> Iterator[Row]:
    """Figures of steps with all rows, and with rows missing."""
    config = with_draws(config, dropout=0.0, drop_token=0.0)  # devices draw other numbers
    torch.manual_seed(1)
    batch = replace(full_batch(config, ROWS), seeds=None)
    options: dict[str, Any] = {"forward": _forward, "loss_config": loss_config}
    most = MOST_BFLOAT16 if loss_config is None else MOST_FLOAT32
    for rows, clips in (("", batch), (", rows missing", _with_missing_rows(batch))):
        cpu = torch.device("cpu")
        expected = step_values(config, clips, cpu, dtype=torch.float64, **options)
        actual = step_values(config, clips, place.device, autocast=loss_config is None, **options)
        apart = distances(actual, expected)
        for what in ("loss", "embeddings", "features"):
            if what in apart:
                yield Row(f"{case}{rows}", f"{what}, off", apart.pop(what), at_most=most)
        worst = max(apart, key=lambda part: apart[part])
        most = MOST_BFLOAT16_GRADIENT if loss_config is None else MOST_FLOAT32
        yield Row(f"{case}{rows}", f"{worst}, off", apart[worst], at_most=most)


def _forward(network: Any, batch: Any) -> Any:
    return network(batch)


def _with_missing_rows(batch: Batch) -> Batch:
    """The first clips lack a picture, the next ones sound, and the next captions."""
    rows = torch.arange(ROWS)
    assert batch.text is not None
    return replace(
        batch,
        video_mask=rows >= 2,
        audio_mask=(rows < 2) | (rows >= 4),
        text=batch.text * ((rows < 4) | (rows >= 6))[:, None, None],
        text_mask=None,
    )


def _random_changes(place: Place) -> Iterator[Row]:
    """Random numbers and changed pictures of the same seeds."""
    seeds, size = torch.arange(4), 32 if place.quick else 224
    torch.manual_seed(2)
    video = normalize_video(torch.randint(256, (4, 8, size, size, 3), dtype=torch.uint8))
    there = place.device
    uniforms, normals = draw_uniforms(seeds, 3, 1000), draw_normals(seeds, 4, 1000)
    changed = jitter_color(video, 1.0, seeds)
    num_other = int((draw_uniforms(seeds.to(there), 3, 1000).cpu() != uniforms).sum())
    yield Row("random changes", "uniform numbers that differ", num_other, at_most=0)
    apart = float((draw_normals(seeds.to(there), 4, 1000).cpu() - normals).abs().max())
    yield Row("random changes", "normal numbers, at most off", apart, at_most=1e-4)
    apart = float((jitter_color(video.to(there), 1.0, seeds.to(there)).cpu() - changed).abs().max())
    yield Row("random changes", "colours in [-1, 1], at most off", apart, at_most=1e-4)
