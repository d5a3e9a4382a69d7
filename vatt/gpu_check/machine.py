"""Stage `machine`: rates of the device without a network; low ones make all other figures void."""

from collections.abc import Iterator

import torch

from vatt.gpu_check.figures import GIB, Row, median_seconds
from vatt.gpu_check.place import Place
from vatt.training.utilisation import peak_flops

# Bytes per second of the memory by the beginning of CUDA's name of the device, the first that fits.
# Source: NVIDIA's data sheets "H200 Tensor Core GPU", "H100 Tensor Core GPU" and "A100 80GB"; of
# A100 and H100 PCIe the slower variant.
BANDWIDTHS = {
    "NVIDIA H200": 4.8e12,
    "NVIDIA H100 NVL": 3.9e12,
    "NVIDIA H100 PCIe": 2.0e12,
    "NVIDIA H100": 3.35e12,
    "NVIDIA A100": 1.555e12,
}
LEAST_SHARE = 0.65  # of peak rate and bandwidth that large products and copies reach on a free GPU


def measure_machine(place: Place) -> Iterator[Row]:
    """Products of matrices, copies on the device, and copies to it."""
    device, size = place.device, 256 if place.quick else 8192
    case = "CPU"
    peak = bandwidth = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        case = properties.name
        peak = peak_flops(case, "bf16-mixed")
        bandwidth = memory_bandwidth(case)
        yield Row(case, "memory", properties.total_memory / GIB, "GiB")
        free, _ = torch.cuda.mem_get_info(device)
        yield Row(case, "memory that is free", free / GIB, "GiB")
    # random numbers: on zeros, which take less power, a GPU is faster
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    seconds = median_seconds({"product": lambda: left @ right}, 20, device)["product"]
    rate = 2 * size**3 / seconds
    least = None if peak is None else LEAST_SHARE * peak / 1e12
    what = f"product of two {size} × {size} matrices in bf16"
    yield Row(case, what, rate / 1e12, "TFLOP/s", at_least=least)
    num_bytes = 2**20 if place.quick else 2**31
    source, target = (torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = median_seconds({"copy": lambda: target.copy_(source)}, 20, device)["copy"]
    least = None if bandwidth is None else LEAST_SHARE * bandwidth / 1e9
    yield Row(
        case, "memory read and written", 2 * num_bytes / seconds / 1e9, "GB/s", at_least=least
    )
    for name in ("pageable", "pinned"):
        host = torch.zeros(num_bytes // 2, dtype=torch.uint8, pin_memory=_pins(name, device))
        part = target[: num_bytes // 2]
        seconds = median_seconds({"copy": lambda: part.copy_(host)}, 5, device)["copy"]  # noqa: B023
        yield Row(case, f"copy of {name} memory to it", num_bytes / 2 / seconds / 1e9, "GB/s")


def _pins(name: str, device: torch.device) -> bool:
    return name == "pinned" and device.type == "cuda"


def memory_bandwidth(device_name: str) -> float | None:
    """Bytes per second of the memory of a device; None if unknown."""
    return next((b for name, b in BANDWIDTHS.items() if device_name.startswith(name)), None)
