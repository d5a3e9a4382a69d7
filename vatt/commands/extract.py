"""The command `vatt extract`: vectors of many media files."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from vatt.config.checks import at_least
from vatt.config.options import Backend, ExtractOptions
from vatt.system.machine import num_cores


def extract(
    sources: Annotated[tuple[str, ...], "SRC"],
    *,
    out: Annotated[Path, "-o"],
    model: str,
    workers: Annotated[int | None, at_least(0)] = None,
    device: str = "auto",
    dtype: str = "auto",
    backend: Backend = "torch",
    strict: bool = False,
    options: ExtractOptions,
) -> int:
    """Extracts vectors from windows of many media files, with the times of the windows.

    A second run extracts only what is missing or has changed. With --replace it also replaces what
    another model or other settings made, which it refuses otherwise. `torchrun --nproc-per-node 8
    --no-python vatt extract …` shares the work among 8 GPUs.

    Args:
        sources: Folder of media or shards, media file, 'pattern/**/*.mp4', list.txt of paths, URL.
        out: Folder for the results.
        model: Model folder, run folder, .ckpt, or org/name on the Hugging Face Hub.
        workers: Processes that read media. None: number of cores minus 1, divided among torchrun's
            processes.
        device: auto, cpu, cuda or mps.
        dtype: auto, float32, bfloat16 or float16.
        backend: torch; or onnx, which runs the towers that `vatt export` wrote into MODEL.
        strict: Exit with code 1 if any input failed.
        options: Windows and vectors.
    """
    from vatt.features.extract import FAILURES
    from vatt.features.extract import extract as extract_features

    if workers is None:  # the others compute
        workers = max(1, (num_cores() - 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    report = extract_features(
        sources,
        out,
        model,
        replace(options, num_workers=workers),
        device=device,
        dtype=dtype,
        backend=backend,
        show_progress=True,
    )
    if os.environ.get("RANK", "0") == "0":
        print(f"{out}: {report}")
        for name, spread in report.spreads.items():
            print(f"  vectors of {name} {spread}")
        if report.failures:
            print(f"{out / FAILURES} lists all failures with their reasons")
    return int(strict and bool(report.failures))
