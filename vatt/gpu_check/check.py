"""The check of a GPU: runs stages in processes of their own, and keeps what they measured."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

from vatt.errors import UserError
from vatt.gpu_check.figures import Row, rows_table
from vatt.gpu_check.options import GpuCheckOptions, StageName
from vatt.gpu_check.stages import ROWS_FILE, STAGES
from vatt.system.environment import describe_environment
from vatt.system.files import write_atomically
from vatt.system.tables import text_table

RESULTS = "gpu.json"
LEAST_SECONDS = 5.0  # below that no stage starts


def check_gpu(options: GpuCheckOptions) -> int:
    """Runs the stages, prints a line for each, and at the end a table of all figures.

    `gpu.json` is rewritten after each stage, so that an interrupted check loses one at most.

    Args:
        options: Stages, time and folder.

    Returns:
        Exit code: 1 if a figure is out of its bounds, or a stage failed or took too long.

    Raises:
        UserError: there is no GPU.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no GPU: look at `nvidia-smi`, or test the check: --device cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    content: dict[str, Any] = {
        "machine": describe_environment(sys.argv[1:]),
        "quick": options.quick,
        "stages": {},
    }
    for name in STAGES:
        if options.only is not None and name not in options.only:
            continue
        result = run_stage(name, options, end - time.monotonic())
        content["stages"][name] = result
        write_atomically(options.out / RESULTS, (json.dumps(content, indent=1) + "\n").encode())
        print(text_table([_line(name, result)], num_left=4), flush=True)
    stages = content["stages"]
    for name, result in stages.items():
        print(f"\n{name}\n{rows_table(result_rows(result))}")
    print(f"\nall figures: {options.out / RESULTS}")
    return int(
        any(result["outcome"] not in ("passed", "no time left") for result in stages.values())
    )


def run_stage(name: StageName, options: GpuCheckOptions, seconds_left: float) -> dict[str, Any]:
    """Runs a stage in a process of its own.

    Args:
        name: Stage.
        options: Size, device and folder.
        seconds_left: Time that is left for it.

    Returns:
        Outcome (passed, failed, error, out of time, no time left), seconds and rows; after an
        error also the last lines of its output, which is in `NAME.log`.
    """
    if seconds_left < LEAST_SECONDS:
        return {"outcome": "no time left", "seconds": 0.0, "rows": []}
    limit = min(seconds_left, STAGES[name].limit_seconds)
    kept = options.out / ROWS_FILE.format(name=name)
    kept.unlink(missing_ok=True)
    log = options.out / f"{name}.log"
    device = "cuda:0" if options.device == "cuda" else "cpu"
    size = "quick" if options.quick else "full"
    began = time.monotonic()
    with log.open("wb") as output:
        code = _call([name, device, str(options.out), size], output.fileno(), limit)
    rows = json.loads(kept.read_text()) if kept.exists() else []
    kept.unlink(missing_ok=True)
    result = {"seconds": round(time.monotonic() - began, 1), "rows": rows}
    result["outcome"] = "out of time" if code is None else "error" if code else "passed"
    if result["outcome"] == "passed" and not all(row.is_reached for row in result_rows(result)):
        result["outcome"] = "failed"
    if result["outcome"] in ("error", "out of time"):
        result["output"] = log.read_text(errors="replace").splitlines()[-20:]
    return result


def result_rows(result: Mapping[str, Any]) -> list[Row]:
    """Figures of a stage."""
    return [Row(**row) for row in result["rows"]]


def _call(arguments: list[str], output: int, limit: float) -> int | None:
    """Exit code of a stage; None if it was stopped, with all processes that it started."""
    command = [sys.executable, "-m", "vatt.gpu_check.stages", *arguments]
    process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _line(name: str, result: Mapping[str, Any]) -> tuple[str, ...]:
    rows = result_rows(result)
    missed = [f"{row.case}: {row.what}" for row in rows if not row.is_reached]
    why = "; ".join(missed) or (result.get("output") or [""])[-1]
    figures = f"{len(rows)} figures"
    return (f"{name:10}", f"{result['outcome']:12}", f"{result['seconds']:4.0f} s", figures, why)
