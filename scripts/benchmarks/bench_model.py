#!/usr/bin/env python3
"""Measures the network: how near it comes to what the machine can do.

    python scripts/benchmarks/bench_model.py    # the Base video tower on a CPU
    python scripts/benchmarks/bench_model.py --device cuda --json bench.json   # on a GPU

Every figure that must reach something says so. Ratios are taken in one run, in turns; medians
count. Needs torch, numpy, einops and vatt, no media and no Lightning.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from bench_table import Row, describe_machine, print_rows
from torch import Tensor

from vatt.batch import Batch
from vatt.config.model import VATTConfig
from vatt.config.presets import preset
from vatt.network.contrastive_loss import ContrastiveLoss, LossConfig
from vatt.network.flops import count_flops, kept_tokens
from vatt.network.model import VATT
from vatt.training.compute import compile_towers
from vatt.training.optim import OptimizerConfig, build_optimizer
from vatt.training.utilisation import PEAKS, peak_flops

CAPTIONS = 5  # of a clip, as in the paper's pre-training
BATCH_SIZES = (256, 192, 128, 96, 64, 48, 32, 16, 8, 4)  # the first that fits is measured
MODELS = ("ma-base", "ma-medium", "ma-large")
H100 = PEAKS["NVIDIA H100"][0]  # FLOP/s in bf16


def median_seconds(
    steps: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Of each step, in turns, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + rounds):
        for name, step in steps.items():
            wait_for(device)
            start = time.perf_counter()
            step()
            wait_for(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    """The dense ones of all blocks, forward and backward, and their FLOPs.

    Every block has weights of its own, and what the forward products make is kept, as in the
    tower: in a loop over the same few matrices, a processor's caches make products look faster.
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
        kept = [torch.mm(x, weight.T) for x, weight, _ in operands]
        for x, weight, gradient in reversed(operands):
            kept.pop()
            torch.mm(gradient, weight)
            torch.mm(gradient.T, x)

    return products, sum(6 * rows * d_in * d_out for d_in, d_out in shapes)


def measure_tower(config: VATTConfig, *, rounds: int) -> list[Row]:
    """The video tower of `config` on the CPU, one clip at a time."""
    video = torch.randint(
        256,
        (1, config.video.num_frames, config.video.image_size, config.video.image_size, 3),
        dtype=torch.uint8,
    )
    half, whole, evaluated = (video_tower(config, drop) for drop in (0.5, 0.0, 0.0))
    evaluated.eval()  # where DropToken is no part of the program
    products, product_flops = matrix_products(config)
    steps = {
        "products": products,
        "half": tower_step(half, video),
        "bf16": tower_step(half, video, bf16=True),
        "whole": tower_step(whole, video),
        "evaluated": tower_step(evaluated, video),
    }
    seconds = median_seconds(steps, rounds, torch.device("cpu"))
    flops = 3 * count_flops(half.config).total
    rate, product_rate = flops / seconds["half"], product_flops / seconds["products"]
    fast_bf16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    case = f"{1 + kept_tokens(config.video, 0.5)} tokens"
    return [
        Row(
            case=case,
            what="fp32 dense products of the blocks",
            value=product_rate / 1e9,
            unit="GFLOP/s",
        ),
        Row(case=case, what="fp32 forward + backward", value=seconds["half"], unit="s"),
        Row(case=case, what="fp32 forward + backward", value=rate / 1e9, unit="GFLOP/s"),
        Row(
            case=case,
            what="fp32 as share of the products' rate",
            value=rate / product_rate,
            unit="×",
            at_least=0.85,
        ),
        Row(
            case=case,
            what="bf16 autocast, times as fast as fp32",
            value=seconds["half"] / seconds["bf16"],
            unit="×",
            at_least=1.8 if fast_bf16 else None,
        ),
        Row(
            case=case,
            what="step with 50 % DropToken, of one without",
            value=seconds["half"] / seconds["whole"],
            unit="×",
            at_most=0.5,
        ),
        Row(
            case=f"{1 + config.video.num_tokens} tokens",
            what="step with DropToken 0, of one in evaluation mode",
            value=seconds["whole"] / seconds["evaluated"],
            unit="×",
            at_most=1.05,
        ),
    ]


# Training on a GPU: clips/s, utilisation, memory.


class Trainee:
    """A model in bf16 training with all that belongs to a step, as it is configured.

    Args:
        config: The model; dropout and DropToken are its own.
        batch_size: Clips of a step, each with all modalities and captions of full length.
        device: Where.
        compile_backend: Of `torch.compile`; None: not compiled.
    """

    def __init__(
        self, config: VATTConfig, batch_size: int, device: torch.device, compile_backend: str | None
    ) -> None:
        torch.manual_seed(0)
        with device:
            self.network = VATT(config).train()
            self.loss = ContrastiveLoss(LossConfig())
            self.batch = full_batch(config, batch_size)
        if compile_backend is not None:
            compile_towers(self.network, compile_backend)
        self.optimizer = build_optimizer(self.network, OptimizerConfig())

    def step(self) -> None:
        """Forward, backward, and the optimiser."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.batch.seeds.device.type, torch.bfloat16):
            output = self.network(self.batch)
        self.loss(output, self.batch).total.backward()
        self.optimizer.step()


def full_batch(config: VATTConfig, batch_size: int) -> Batch:
    """Clips with picture, sound and captions of full length, on the default device."""
    video, text = config.video, config.text
    frame = (video.image_size, video.image_size, 3)
    return Batch(
        video=torch.randint(256, (batch_size, video.num_frames, *frame), dtype=torch.uint8),
        audio=torch.rand(batch_size, config.audio.num_samples) - 0.5,
        text=torch.randint(1, text.vocab_size, (batch_size, CAPTIONS, text.max_words)),
        seeds=torch.arange(batch_size),
    )


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
    """Training with the first of the batch sizes that fits; no rows where none does."""
    for batch_size in batch_sizes:
        try:
            seconds = seconds_per_step(config, batch_size, device, compile_backend, rounds)
        except torch.OutOfMemoryError:
            continue
        case = f"{name}{'' if compile_backend is None else ', compiled'}"
        return training_rows(case, config, batch_size, seconds, device, peak)
    print(f"{name}: no batch of {min(batch_sizes)} clips fits", file=sys.stderr)
    return []


def seconds_per_step(
    config: VATTConfig,
    batch_size: int,
    device: torch.device,
    compile_backend: str | None,
    rounds: int,
) -> float:
    """Median of some steps of a new model; the peak of the memory is counted from here."""
    if device.type == "cuda":
        gc.collect()  # what did not fit before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    trainee = Trainee(config, batch_size, device, compile_backend)
    return median_seconds({"step": trainee.step}, rounds, device)["step"]


def training_rows(
    case: str,
    config: VATTConfig,
    batch_size: int,
    seconds: float,
    device: torch.device,
    peak: float | None,
) -> list[Row]:
    """What a step of so many clips and seconds means."""
    rate = 3 * count_flops(config, num_captions=CAPTIONS).total * batch_size / seconds
    rows = [
        Row(case=case, what="batch", value=batch_size, unit="clips"),
        Row(case=case, what="training", value=batch_size / seconds, unit="clips/s"),
        Row(case=case, what="model FLOP/s", value=rate / 1e12, unit="TFLOP/s"),
    ]
    if peak is not None:
        goal = 0.55 if case == "ma-medium, compiled" and peak == H100 else None
        share = rate / peak
        rows.append(Row(case=case, what="model FLOP/s utilisation", value=share, at_least=goal))
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device) / 2**30
        rows.append(Row(case=case, what="peak memory", value=memory, unit="GiB"))
    return rows


def measure_gpu(names: Sequence[str], batch_sizes: Sequence[int], peak: float | None) -> list[Row]:
    """All models, without compiling and with it."""
    rows = []
    for name in names:
        for backend in (None, "inductor"):
            rows += measure_training(
                name,
                preset(name),
                torch.device("cuda"),
                compile_backend=backend,
                batch_sizes=batch_sizes,
                peak=peak,
                rounds=10,
            )
            print_rows("model", rows[-5:])
    return rows


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="on a GPU")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=BATCH_SIZES, help="the first that fits"
    )
    parser.add_argument("--peak-tflops", type=float, help="of a GPU that is not in the table")
    options = parser.parse_args(args)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU and a torch built for it; none is seen here")
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 where a figure that must be reached is not."""
    options = parse(args)
    machine = describe_machine()
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    if options.quick:
        rows = measure_tower(replace(preset("tiny"), arrangement="specific"), rounds=1)
        for backend in (None, "eager"):
            rows += measure_training(
                "tiny",
                preset("tiny"),
                torch.device(options.device),
                compile_backend=backend,
                batch_sizes=(4,),
                peak=1e12,
                rounds=1,
            )
        print_rows("model", rows)
    elif options.device == "cpu":
        rows = measure_tower(preset("bbs"), rounds=5)
        print_rows("model", rows)
    else:
        peak = options.peak_tflops and options.peak_tflops * 1e12
        known = peak_flops(machine["gpu"], "bf16-mixed")
        rows = measure_gpu(options.models, options.batch_sizes, peak or known)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        figures = [row.to_json() for row in rows]
        content = {"machine": machine, "quick": options.quick, "rows": figures}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if options.quick or all(row.is_reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
