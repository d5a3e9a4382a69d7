#!/usr/bin/env python3
"""Measures the network: how near it comes to what the machine can do.

    python scripts/benchmarks/bench_model.py    # the Base video tower on a CPU
    python scripts/benchmarks/bench_model.py --device cuda --json bench.json   # on a GPU

Every figure with a bound shows it. Ratios are taken in one run, in turns; medians count. Needs
torch, numpy, einops and vatt, no media and no Lightning.
"""

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from bench_table import benchmark_parser, run_sections
from torch import Tensor

from vatt.config.model import VATTConfig
from vatt.config.presets import preset
from vatt.gpu_check.batches import CAPTIONS, full_batch
from vatt.gpu_check.figures import Row, median_seconds
from vatt.network.contrastive_loss import ContrastiveLoss, LossConfig
from vatt.network.flops import count_flops, kept_tokens
from vatt.network.model import VATT
from vatt.training.compute import compile_towers
from vatt.training.optim import OptimizerConfig, build_optimizer
from vatt.training.utilisation import PEAKS, peak_flops

BATCH_SIZES = (256, 192, 128, 96, 64, 48, 32, 16, 8, 4)  # the first that fits is measured
MODELS = ("ma-base", "ma-medium", "ma-large")
H100 = PEAKS["NVIDIA H100"][0]  # FLOP/s in bf16


# The tower on a CPU: fp32 against the products it is made of, bf16, DropToken.


def video_tower(config: VATTConfig, drop_token: float) -> VATT:
    """The video tower of a specific model, in training, without dropout."""
    encoder = replace(config.tower("video"), dropout=0.0)
    return VATT(
        replace(
            config, modalities=("video",), video_encoder=encoder, head=None, drop_token=drop_token
        )
    ).train()


def tower_step(tower: VATT, video: Tensor, *, bf16: bool = False) -> Callable[[], None]:
    """Forward and backward of the whole tower, no optimiser."""

    def step() -> None:
        tower.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features = tower.encode_video(video)
        features.float().square().mean().backward()

    return step


def matrix_products(config: VATTConfig) -> tuple[Callable[[], None], int]:
    """The dense products of all blocks, forward and backward, and their FLOPs.

    Every block has its own weights, and the forward results are kept, as in the tower: in a loop
    over the same few matrices, a processor's caches make products look faster.
    """
    encoder = config.tower("video")
    rows, width = 1 + kept_tokens(config.video, 0.5), encoder.num_heads * encoder.d_kv
    shapes = encoder.num_layers * (
        (encoder.d_model, 3 * width),
        (width, encoder.d_model),
        (encoder.d_model, encoder.d_ff),
        (encoder.d_ff, encoder.d_model),
    )
    operands = [
        (torch.randn(rows, d_in), torch.randn(d_out, d_in), torch.randn(rows, d_out))
        for d_in, d_out in shapes
    ]

    def products() -> None:
        results = [torch.mm(x, weight.T) for x, weight, _ in operands]
        for x, weight, gradient in reversed(operands):
            results.pop()
            torch.mm(gradient, weight)
            torch.mm(gradient.T, x)

    return products, sum(6 * rows * d_in * d_out for d_in, d_out in shapes)


def measure_tower(config: VATTConfig, *, rounds: int) -> list[Row]:
    """The video tower of `config` on the CPU, one clip at a time."""
    video = full_batch(config, 1).video
    assert video is not None
    half, whole, evaluated = (video_tower(config, drop) for drop in (0.5, 0.0, 0.0))
    evaluated.eval()  # here DropToken is no part of the program
    products, product_flops = matrix_products(config)
    steps = {
        "products": products,
        "half": tower_step(half, video),
        "bf16": tower_step(half, video, bf16=True),
        "whole": tower_step(whole, video),
        "evaluated": tower_step(evaluated, video),
    }
    seconds = median_seconds(steps, rounds, torch.device("cpu"))
    fp32, bf16, whole, in_evaluation = [seconds[n] for n in ("half", "bf16", "whole", "evaluated")]
    rate = 3 * count_flops(half.config).total / fp32
    product_rate = product_flops / seconds["products"]
    goal = 1.8 if torch.cpu.get_capabilities().get("avx512_bf16", False) else None
    case = f"{1 + kept_tokens(config.video, 0.5)} tokens"
    undropped = f"{1 + config.video.num_tokens} tokens"
    step = "step with DropToken 0, of one in evaluation mode"
    return [
        Row(case, "fp32 dense products of the blocks", product_rate / 1e9, "GFLOP/s"),
        Row(case, "fp32 forward + backward", fp32, "s"),
        Row(case, "fp32 forward + backward", rate / 1e9, "GFLOP/s"),
        Row(case, "fp32 as share of the products' rate", rate / product_rate, "×", at_least=0.85),
        Row(case, "bf16 autocast, times as fast as fp32", fp32 / bf16, "×", at_least=goal),
        Row(case, "step with 50 % DropToken, of one without", fp32 / whole, "×", at_most=0.5),
        Row(undropped, step, whole / in_evaluation, "×", at_most=1.05),
    ]


# Training on a GPU: clips/s, utilisation, memory.


def training_step(
    config: VATTConfig, batch_size: int, device: torch.device, compile_backend: str | None
) -> Callable[[], None]:
    """A training step in bf16 of a new model: forward, backward, and the optimiser.

    Args:
        config: The model, with its dropout and DropToken.
        batch_size: Clips of a step, each with all modalities and captions of full length.
        device: Device of all of it.
        compile_backend: Backend of `torch.compile`; None: not compiled.
    """
    torch.manual_seed(0)
    with device:
        network = VATT(config).train()
        loss = ContrastiveLoss(LossConfig())
        batch = full_batch(config, batch_size)
    if compile_backend is not None:
        compile_towers(network, compile_backend)
    optimizer = build_optimizer(network, OptimizerConfig())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            output = network(batch)
        loss(output, batch).total.backward()
        optimizer.step()

    return step


def measure_training(
    name: str,
    config: VATTConfig,
    device: torch.device,
    *,
    compile_backend: str | None,
    batch_sizes: Sequence[int],
    peak: float | None,
    rounds: int,
) -> list[Row]:
    """Trains with the first batch size that fits; no rows if none does."""
    for batch_size in batch_sizes:
        if device.type == "cuda":
            gc.collect()  # a larger batch that did not fit
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            step = training_step(config, batch_size, device, compile_backend)
            seconds = median_seconds({"step": step}, rounds, device)["step"]
        except torch.OutOfMemoryError:
            continue
        case = f"{name}{'' if compile_backend is None else ', compiled'}"
        return training_rows(case, config, batch_size, seconds, device, peak)
    print(f"{name}: no batch of {min(batch_sizes)} clips fits", file=sys.stderr)
    return []


def training_rows(
    case: str,
    config: VATTConfig,
    batch_size: int,
    seconds: float,
    device: torch.device,
    peak: float | None,
) -> list[Row]:
    """Figures of a training step."""
    rate = 3 * count_flops(config, num_captions=CAPTIONS).total * batch_size / seconds
    rows = [
        Row(case, "batch", batch_size, "clips"),
        Row(case, "training", batch_size / seconds, "clips/s"),
        Row(case, "model FLOP/s", rate / 1e12, "TFLOP/s"),
    ]
    if peak is not None:
        goal = 0.4 if case == "ma-medium, compiled" and peak == H100 else None
        share = rate / peak
        rows.append(Row(case, "model FLOP/s utilisation", share, at_least=goal))
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device) / 2**30
        rows.append(Row(case, "peak memory", memory, "GiB"))
    return rows


def main(args: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="on a GPU")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=BATCH_SIZES, help="the first that fits"
    )
    parser.add_argument("--peak-tflops", type=float, help="of a GPU that is not in the table")
    options = parser.parse_args(args)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU and a torch built for it; none is seen here")
    names, batch_sizes, rounds, backend = options.models, options.batch_sizes, 10, "inductor"
    peak = options.peak_tflops and options.peak_tflops * 1e12
    measures: dict[str, Callable[[], list[Row]]] = {}
    if options.quick:
        names, batch_sizes, rounds, backend, peak = ["tiny"], (4,), 1, "eager", 1e12
        tower = replace(preset("tiny"), arrangement="specific")
        measures["tower"] = partial(measure_tower, tower, rounds=1)
    elif options.device == "cpu":
        return run_sections({"tower": partial(measure_tower, preset("bbs"), rounds=5)}, options)
    elif peak is None:
        peak = peak_flops(torch.cuda.get_device_name(), "bf16-mixed")
    for name in names:
        for compile_backend in (None, backend):
            measures[f"{name}{', compiled' if compile_backend else ''}"] = partial(
                measure_training,
                name,
                preset(name),
                torch.device(options.device),
                compile_backend=compile_backend,
                batch_sizes=batch_sizes,
                peak=peak,
                rounds=rounds,
            )
    return run_sections(measures, options)


if __name__ == "__main__":
    sys.exit(main())
