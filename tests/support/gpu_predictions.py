"""Predictions for the shipped recipes on GPUs: tests/gpu/data/predictions.json, and its tables.

    python tests/support/gpu_predictions.py          # measures all cases anew, some minutes each
    python tests/support/gpu_predictions.py finetune # those whose name has this word

writes the file and the tables of docs/gpu.md.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fake_gpu import ROOT, run_on_fake_gpu

FILE = ROOT / "tests" / "gpu" / "data" / "predictions.json"
PAGE = ROOT / "docs" / "gpu.md"
MEMORY_TOLERANCE = 0.05
MORE_ALLOWED = 1.05  # kernels and copies
MAX_LEFT_MIB = 1.0  # logged values, cached matrices
USABLE_GIB = 74.0  # of 80 GB: 92 %, the rest is for the context, NCCL and fragmentation


OWN = ("--model.init_args.model.classifier.num_classes=10",)
RECOMPUTED = ("--model.init_args.checkpoint_activations=true",)


def case(configs: str, gpus: int, start: str | None = None, *more: str) -> dict[str, Any]:
    """A run: shipped configs, number of GPUs, preset to start from, further arguments."""
    arguments = [*(f"--config={name}" for name in configs.split(" + ")), *more]
    name = f"{configs}{f' from {start}' if start else ''}, {gpus} GPU{'s' * (gpus > 1)}"
    name += ", recomputed" * (RECOMPUTED[0] in arguments)
    return {"name": name, "configs": configs, "arguments": arguments, "gpus": gpus, "start": start}


CASES = [
    case("tiny", 1),
    case("tiny + overlay_video_audio", 1),
    case("demo", 1),
    case("demo_long", 1),
    case("demo + overlay_specific + overlay_compile", 1),
    case("pretrain_ma_base_1gpu", 1),
    case("pretrain_ma_medium", 8),
    case("pretrain_ma_medium", 32),
    case("pretrain_ma_medium", 256),
    case("pretrain_ma_medium + overlay_sigmoid", 8),
    case("pretrain_bbs", 8),
    case("pretrain_bbs + overlay_spectrogram", 8),
    case("pretrain_mbs", 8),
    case("pretrain_lbs", 8),
    case("finetune_own", 1, "tiny", *OWN),
    case("finetune_own", 1, "ma-medium", *OWN, *RECOMPUTED),
    case("finetune_kinetics", 8, "lbs"),
    case("finetune_kinetics", 1, "lbs", *RECOMPUTED),
    case("finetune_moments", 8, "lbs"),
    case("finetune_imagenet", 8, "lbs"),
    case("finetune_audioset", 8, "bbs"),
    case("finetune_audioset", 8, "ma-medium", *RECOMPUTED),
]


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one case that are kept."""
    step, partial, validation = (measured[k] for k in ("training", "partial", "validation"))
    return {
        "clips": measured["clips"],
        "weights_gib": round(measured["weights_gib"], 2),
        "peak_gib": float(f"{step['peak_gib']:.4g}"),
        "validation_rows": measured["validation_rows"],
        "validation_gib": float(f"{validation['peak_gib']:.4g}"),
        "kernels": step["kernels"],
        "copies": sum(step["copies"].values()),
        "waits": max(sum(one["waits"].values()) for one in (partial, step)),
        "validation_waits": sum(validation["waits"].values()),
    }


def read() -> dict[str, dict[str, Any]]:
    """The committed numbers by name of the case."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def peak_gib(numbers: dict[str, Any]) -> float:
    """Largest memory of a case, in training or validation."""
    return max(numbers["peak_gib"], numbers["validation_gib"])


def check(name: str, measured: dict[str, Any]) -> None:
    """Compares a measurement with the committed numbers of its case.

    Raises:
        AssertionError: it needs more than they say, or much less memory, so that they are wrong.
    """
    old, new = read()[name], summary(measured)
    left = measured["left_mib"]
    assert left < MAX_LEFT_MIB, f"{name}: steps leave {left:.1f} MiB that nothing needs"
    for kind in ("peak_gib", "validation_gib"):
        assert abs(new[kind] / old[kind] - 1) <= MEMORY_TOLERANCE, f"{name}: {kind} {new[kind]} GiB"
    for kind, steps in (("waits", ("partial", "training")), ("validation_waits", ("validation",))):
        places = [measured[step]["waits"] for step in steps]
        assert new[kind] <= old[kind], f"{name}: {new[kind]} host waits: {places}"
    for kind in ("kernels", "copies"):
        assert new[kind] <= old[kind] * MORE_ALLOWED, f"{name}: {new[kind]} {kind}"


def memory_table(numbers: dict[str, dict[str, Any]]) -> str:
    """Markdown table of the predicted memory."""
    lines = [
        "| run | clips per GPU | weights | training | validation (rows) | 80 GB |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, one in numbers.items():
        fits = "fits" if peak_gib(one) <= USABLE_GIB else "**too much**"
        validation = f"{one['validation_gib']:.1f} ({one['validation_rows']})"
        row = (name, one["clips"], one["weights_gib"], f"{one['peak_gib']:.1f}", validation, fits)
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def steps_table(numbers: dict[str, dict[str, Any]]) -> str:
    """Markdown table of the host waits, copies and kernels of a step."""
    lines = ["| run | host waits | copies to the GPU | kernels |", "|---|---:|---:|---:|"]
    for name, one in numbers.items():
        lines.append(f"| {name} | {one['waits']} | {one['copies']} | {one['kernels']:,} |")
    return "\n".join(lines)


def main(words: list[str]) -> None:
    """Measures the cases whose name has one of the words, and writes file and page."""
    old = read() if FILE.exists() else {}
    chosen = [one for one in CASES if not words or any(word in one["name"] for word in words)]
    folder = Path(sys.argv[0]).resolve().parents[2] / ".pytest_cache" / "d" / "fake_gpu"
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda one: run_on_fake_gpu("gpu_recipes:measure", [one], folder), chosen)
        new = {one["name"]: summary(run[0]) for one, run in zip(chosen, runs, strict=True)}
    numbers = {one["name"]: new.get(one["name"], old.get(one["name"])) for one in CASES}
    numbers = {name: one for name, one in numbers.items() if one}
    FILE.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    for heading, table in (("run | clips", memory_table), ("run | host", steps_table)):
        before, _, rest = page.partition(f"| {heading}")
        _, _, after = rest.partition("\n\n")
        page = f"{before}{table(numbers)}\n\n{after}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
