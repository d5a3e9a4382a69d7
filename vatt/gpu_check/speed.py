"""Stages `speed` and `attention`: clips per second, utilisation and memory of shipped recipes."""

import gc
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vatt.gpu_check.figures import GIB, Row
from vatt.gpu_check.machine import memory_bandwidth
from vatt.gpu_check.place import Place
from vatt.gpu_check.prediction import predict_step
from vatt.gpu_check.recipes import RandomRun, Recipe, StepParts, network_config, train
from vatt.network.flops import count_flops
from vatt.training.utilisation import TRAINING_PASSES, peak_flops

VALIDATION_ROWS = 64  # as the shipped data module takes at most
MICRO, KEEP = "--model.init_args.micro_batch_size=", "--model.init_args.checkpoint_activations="
RECIPES = {
    "ma-base": Recipe(config="pretrain_ma_base_1gpu", batch_size=64, options=(f"{MICRO}null",)),
    "ma-base, micro-batches of 64": Recipe(config="pretrain_ma_base_1gpu", batch_size=256),
    "ma-medium": Recipe(
        config="pretrain_ma_medium", batch_size=256, validation_rows=VALIDATION_ROWS
    ),
    "ma-medium, all activations": Recipe(
        config="pretrain_ma_medium", batch_size=64, options=(f"{KEEP}false",)
    ),
    "ma-medium, selective": Recipe(
        config="pretrain_ma_medium", batch_size=64, options=(f"{KEEP}selective",)
    ),
    "lbs": Recipe(config="pretrain_lbs", batch_size=256),
    "mbs": Recipe(config="pretrain_mbs", batch_size=256),
    "bbs": Recipe(config="pretrain_bbs", batch_size=256),
}
# GiB by recipe, which a checkout has; an installed vatt has none
PREDICTIONS = Path(__file__).parents[2] / "tests" / "gpu" / "data" / "predictions.json"
TOLERANCE = 0.05  # of a prediction
QUICK = {
    "tiny": Recipe(config="tiny", batch_size=8, max_steps=4, validation_rows=8),
    "tiny, micro-batches of 4": Recipe(
        config="tiny", batch_size=8, max_steps=4, options=(f"{MICRO}4",)
    ),
}
COMPILED = Recipe(
    config="pretrain_ma_medium",
    batch_size=128,
    options=(f"{KEEP}false", "--model.init_args.compile_towers=true"),
)
# The kernel that is measured, before those that take what it cannot, such as masks
ATTENTION = {
    "flash": (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
    "cuDNN": (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
    "efficient": (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
}


def measure_speed(place: Place) -> Iterator[Row]:
    """Steps of the recipes as `vatt fit` makes them, with the largest batch per GPU."""
    for name, recipe in (QUICK if place.quick else RECIPES).items():
        yield from measure_recipe(f"{name}, {recipe.batch_size} clips", recipe, place)


def measure_attention(place: Place) -> Iterator[Row]:
    """Steps of the compiled Medium model with each kernel of attention, and without compiling."""
    compiled = QUICK["tiny"] if place.quick else COMPILED
    eager = replace(compiled, options=compiled.options[:1])
    yield from measure_recipe("not compiled", eager, place)
    for name, backends in ATTENTION.items():
        torch.compiler.reset()
        on_gpu = place.device.type == "cuda"
        with sdpa_kernel(list(backends), set_priority=True) if on_gpu else nullcontext():
            yield from measure_recipe(f"compiled, {name} attention", compiled, place)


def measure_recipe(case: str, recipe: Recipe, place: Place) -> Iterator[Row]:
    """Figures of a recipe; one that says so if the device lacks memory for it."""
    gc.collect()  # the run before, whose parts refer to each other
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
    steps = StepParts()
    try:
        run = train(recipe, place.device, [steps])
    except torch.OutOfMemoryError:
        yield Row(case, "runs that fit into the memory", 0, at_least=1)
    else:
        yield from _speed(case, recipe, run, steps, place)


def _speed(
    case: str, recipe: Recipe, run: RandomRun, steps: StepParts, place: Place
) -> Iterator[Row]:
    config = network_config(run)
    rate = recipe.batch_size / steps.seconds
    yield Row(case, "training", rate, "clips/s")
    flops = TRAINING_PASSES * count_flops(config).total * rate
    yield Row(case, "model FLOP/s", flops / 1e12, "TFLOP/s")
    if place.device.type == "cuda":
        gpu = torch.cuda.get_device_name(place.device)
        peak, bandwidth = peak_flops(gpu, "bf16-mixed"), memory_bandwidth(gpu)
        if peak is not None and bandwidth is not None:
            yield Row(case, "model FLOP/s utilisation", flops / peak)
            model: Any = run.model
            step = predict_step(
                config,
                recipe.batch_size,
                peak=peak,
                bandwidth=bandwidth,
                compiled=model.compile_towers,
                recomputed=bool(model.checkpoint_activations or model.micro_batch_size),
            )
            yield Row(case, "training, predicted", recipe.batch_size / step.total, "clips/s")
        yield _peak_row(case, steps.peak / GIB, predicted_gib(recipe))
        if recipe.validation_rows:
            rows = f"peak memory of validation, {recipe.validation_rows} rows"
            yield Row(case, rows, steps.validation_peak / GIB, "GiB")
    yield Row(case, "first step", steps.first_seconds, "s")
    for part, seconds in steps.parts.items():
        yield Row(case, part, seconds * 1e3, "ms")


def _peak_row(case: str, peak_gib: float, prediction: float | None) -> Row:
    what = "peak memory of a step"
    if prediction is None:
        return Row(case, f"{what} (no prediction)", peak_gib, "GiB")
    low, high = ((1 + sign * TOLERANCE) * prediction for sign in (-1, 1))
    return Row(case, what, peak_gib, "GiB", at_least=low, at_most=high)


def predicted_gib(recipe: Recipe) -> float | None:
    """Predicted memory of a step of a recipe as it is shipped; None if there is no prediction."""
    if recipe.options or not PREDICTIONS.is_file():
        return None
    predictions: dict[str, Any] = json.loads(PREDICTIONS.read_text(encoding="utf-8"))
    for name, values in predictions.items():
        if name.startswith(f"{recipe.config}, ") and values["clips"] == recipe.batch_size:
            return float(values["peak_gib"])
    return None
