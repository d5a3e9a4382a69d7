"""The command `vatt doctor`: a report on the installation, a model's cost, or a GPU."""

import contextlib
import platform
import re
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from vatt.gpu_check.options import GpuCheckOptions
from vatt.system.environment import installed_version
from vatt.system.machine import num_cores
from vatt.system.tables import text_table

Rows = list[tuple[str, str]]


def doctor(*, model: str | None = None, gpu: bool = False, check: GpuCheckOptions) -> int:
    """Lists what is installed and what is missing, shows the cost of a model, or checks a GPU.

    The exit code is 1 if anything that training needs is missing, or a GPU fails a check.

    Args:
        model: Preset, model folder, run folder or checkpoint whose parameters and FLOPs to show, or
            "all" for all presets. None: the installation.
        gpu: Check training on this machine's GPU, and measure its speed and memory.
        check: With --gpu.
    """
    if gpu:
        from vatt.gpu_check.check import check_gpu

        return check_gpu(check)
    if model is not None:
        from vatt.models.costs import describe

        print(describe(model))
        return 0
    remedies: list[str] = []
    for title, find in (
        ("packages", _packages),
        ("extras", _extras),
        ("media", _media),
        ("devices", _devices),
        ("tracking", _tracking),
    ):
        print(f"{title}\n{text_table(_guarded(find, remedies), num_left=2, indent='  ')}")
    missing = "; ".join(dict.fromkeys(remedies))
    print(f"missing: {missing}" if missing else "everything that training needs is installed")
    return int(bool(missing))


def _guarded(find: Callable[[list[str]], Rows], missing: list[str]) -> Rows:
    """Rows of a section, or a row with the error that prevents them."""
    try:
        return find(missing)
    except (ImportError, OSError) as error:  # OSError: a library that a package loads
        name = (getattr(error, "name", None) or "").partition(".")[0]
        missing.append(f"pip install {name}" if name else f"a library ({error})")
        return [(f"{name or 'something'} does not load:", str(error))]


def _packages(missing: list[str]) -> Rows:
    versions = _requirements().get("", {})
    missing += [f"pip install {name}" for name, found in versions.items() if found is None]
    versions = {"python": platform.python_version(), "vatt": installed_version("vatt"), **versions}
    return [(name, found or "not installed") for name, found in versions.items()]


def _extras(missing: list[str]) -> Rows:
    """Packages of each extra; an extra that is not installed does not count as missing."""
    rows = []
    for extra, versions in sorted(_requirements().items()):
        absent = [name for name, found in versions.items() if found is None]
        present = ", ".join(f"{name} {found}" for name, found in versions.items() if found)
        remedy = f'pip install "vatt[{extra}]" for {", ".join(absent)}'
        if extra not in ("", "all", "dev"):
            rows.append((extra, remedy if absent else present))
    return rows or [("vatt is not installed:", "pip install -e .")]  # a checkout on the path


def _requirements() -> dict[str, dict[str, str | None]]:
    """Required versions by extra ("" for required packages) and package."""
    packages: dict[str, dict[str, str | None]] = {}
    with contextlib.suppress(PackageNotFoundError):
        for line in requires("vatt") or []:
            if match := re.match(r"([\w.-]+)[^;]*(?:;.*extra == ['\"]([\w-]+))?", line):
                if match[1] == "vatt":  # an extra that holds another one
                    continue
                packages.setdefault(match[2] or "", {})[match[1]] = installed_version(match[1])
    return packages


def _media(missing: list[str]) -> Rows:
    """Codecs of PyAV's FFmpeg."""
    from av.codec import Codec, codecs_available
    from av.codec.codec import UnknownCodecError

    rows = []
    for name, encodes in (("h264", False), ("aac", False), ("libx264", True), ("aac", True)):
        what = f"{name} {'encoder' if encodes else 'decoder'}"
        try:
            Codec(name, "w" if encodes else "r")
        except UnknownCodecError:
            missing.append(f"{what}: pip install --force-reinstall av")
            rows.append((what, "missing"))
        else:
            rows.append((what, "ok"))
    return [*rows, ("codecs in total", str(len(codecs_available)))]


def _devices(missing: list[str]) -> Rows:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        gpus.append("Apple MPS")
    return [
        ("CPU cores", f"{num_cores()} (torch uses {torch.get_num_threads()})"),
        *(("GPU", name) for name in gpus or ["none: training uses the CPU"]),
        ("disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free in this folder"),
    ]


def _tracking(missing: list[str]) -> Rows:
    """Mode and key of Weights & Biases."""
    from vatt.runs.loggers import has_wandb_key, wandb_mode

    key = "found" if has_wandb_key() else "none: `wandb login` stores one"
    return [("W&B runs are", wandb_mode("auto")), ("W&B key", key)]
