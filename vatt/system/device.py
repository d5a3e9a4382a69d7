"""Device and precision of a computation."""

import os

import torch

from vatt.errors import UserError
from vatt.system.machine import free_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str | torch.device) -> torch.device:
    """Device by name; "auto" is CUDA, else MPS, else the CPU.

    With "auto" and "cuda", each process of torchrun gets its own GPU.

    Raises:
        UserError: the device does not exist.
    """
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"no device {device!r}: give auto, cpu, cuda or mps") from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"no device {device!r}: give auto, cpu, cuda or mps")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' is asked for, but torch sees no CUDA device: give 'auto'")
    if chosen == torch.device("cuda") and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Dtype by name; "auto" is bfloat16 on CUDA, else float32.

    Raises:
        UserError: the name is not float32, bfloat16 or float16.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise UserError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}")
    return chosen


def free_device_memory(device: torch.device) -> int | None:
    """Bytes of memory that are free on a GPU; on the CPU, for this process. None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_memory()
