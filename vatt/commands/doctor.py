"""The command `vatt doctor`: a report on the installation, or on the cost of a model."""

import platform
import re
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from vatt.system.machine import num_cores

# required packages, imported under their own names
PACKAGES = (
    *("torch", "torchaudio", "av", "lightning", "jsonargparse", "tokenizers", "safetensors"),
    *("huggingface_hub", "einops", "numpy", "tqdm", "PyYAML", "wandb"),
)


def doctor(*, model: str | None = None) -> int:
    """Lists what is installed and what is missing, or shows the cost of a model.

    The exit code is 1 if anything that training needs is missing.

    Args:
        model: Preset, model folder or checkpoint whose parameters and FLOPs to show, or "all" for
            all presets.
    """
    if model is not None:
        from vatt.models.costs import describe

        print("\n".join(describe(model)))
        return 0
    remedies: list[str] = []
    for title, find in (
        ("packages", _packages),
        ("extras", _extras),
        ("media", _media),
        ("devices", _devices),
        ("tracking", _tracking),
    ):
        print("\n".join([title, *(f"  {line}" for line in _guarded(find, remedies))]))
    missing = "; ".join(dict.fromkeys(remedies))
    print(f"missing: {missing}" if missing else "everything that training needs is installed")
    return int(bool(missing))


def _guarded(find: Callable[[list[str]], list[str]], missing: list[str]) -> list[str]:
    """Lines of a section, or the reason why there are none."""
    try:
        return find(missing)
    except (ImportError, OSError) as error:  # OSError: a library that a package loads
        name = (getattr(error, "name", None) or "").partition(".")[0]
        missing.append(f"pip install {name}" if name else f"a library ({error})")
        return [f"{name or 'something'} does not load: {error}"]


def _packages(missing: list[str]) -> list[str]:
    lines = [f"python          {platform.python_version()}"]
    for name in ("vatt", *PACKAGES):
        found = _version(name)
        lines.append(f"{name:15} {found or 'not installed'}")
        if found is None and name != "vatt":  # a checkout on the path needs no installation
            missing.append(f"pip install {name}")
    return lines


def _extras(missing: list[str]) -> list[str]:
    """Packages of each extra; an extra that is not installed does not count as missing."""
    try:
        asked = requires("vatt") or []
    except PackageNotFoundError:  # a checkout on the path
        return ["vatt is not installed: pip install -e ."]
    packages: dict[str, dict[str, str | None]] = {}
    for line in asked:
        if found := re.match(r"([\w.-]+).*extra == ['\"](\w+)", line):
            packages.setdefault(found[2], {})[found[1]] = _version(found[1])
    packages.pop("dev", None)
    lines = []
    for extra, versions in sorted(packages.items()):
        absent = [name for name, found in versions.items() if found is None]
        there = ", ".join(f"{name} {found}" for name, found in versions.items() if found)
        remedy = f'pip install "vatt[{extra}]" for {", ".join(absent)}'
        lines.append(f"{extra:15} {remedy if absent else there}")
    return lines


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _media(missing: list[str]) -> list[str]:
    """Codecs of PyAV's FFmpeg."""
    from av.codec import Codec, codecs_available
    from av.codec.codec import UnknownCodecError

    lines = []
    for name, encodes in (("h264", False), ("aac", False), ("libx264", True), ("aac", True)):
        what = f"{name} {'encoder' if encodes else 'decoder'}"
        try:
            Codec(name, "w" if encodes else "r")
        except UnknownCodecError:
            missing.append(f"{what}: pip install --force-reinstall av")
            lines.append(f"{what:16} missing")
        else:
            lines.append(f"{what:16} ok")
    return [*lines, f"{len(codecs_available)} codecs in total"]


def _devices(missing: list[str]) -> list[str]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    lines = [f"CPU cores     {num_cores()} (torch uses {torch.get_num_threads()})"]
    lines += [f"GPU           {name}" for name in gpus] or [
        "GPU           none: training uses the CPU"
    ]
    if torch.backends.mps.is_available():
        lines.append("GPU           Apple MPS")
    return [*lines, f"disk          {free:.0f} GB free in this folder"]


def _tracking(missing: list[str]) -> list[str]:
    """Mode and key of Weights & Biases."""
    from vatt.runs.loggers import has_wandb_key, wandb_mode

    key = "found" if has_wandb_key() else "none: `wandb login` stores one"
    return [f"W&B runs are  {wandb_mode('auto')}", f"W&B key       {key}"]
