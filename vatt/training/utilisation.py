"""Model FLOP/s utilisation: the FLOP/s of the model relative to the peak of the device.

Recomputation to save memory (activation checkpointing) does not count: this measures training, not
the hardware.
"""

from operator import mul

import torch
from torch import nn

from vatt.batch import Batch, MicroBatches
from vatt.config.geometry import MODALITIES
from vatt.config.model import VATTConfig
from vatt.network.flops import count_flops

TRAINING_PASSES = 3  # forward, and backward for inputs and for weights: see `vatt.network.flops`

# FLOP/s by the beginning of CUDA's name of the device, the first that fits: of tensor cores in 16
# bit, of tensor cores in TF32, of the other cores in float32. All without sparsity, which the data
# sheets halve for. Source: NVIDIA's data sheets "H200 Tensor Core GPU", "H100 Tensor Core GPU" and
# "A100 80GB".
PEAKS = {
    "NVIDIA H200 NVL": (835.5e12, 417.5e12, 60e12),
    "NVIDIA H200": (989.5e12, 494.5e12, 67e12),
    "NVIDIA H100 NVL": (835.5e12, 417.5e12, 60e12),
    "NVIDIA H100 PCIe": (756.5e12, 378e12, 51e12),
    "NVIDIA H100": (989.5e12, 494.5e12, 67e12),
    "NVIDIA A100": (312e12, 156e12, 19.5e12),
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak FLOP/s of a device; None if unknown.

    Args:
        device_name: Name from `torch.cuda.get_device_name`.
        precision: Precision of Lightning's trainer, such as `bf16-mixed`. Float32 runs in TF32 if
            torch's `float32_matmul_precision` allows it.
    """
    known = next((peak for name, peak in PEAKS.items() if device_name.startswith(name)), None)
    if known is None or "MIG" in device_name:  # a share of a device
        return None
    if precision.startswith(("bf16-", "16-")):
        return known[0]
    if precision in ("32-true", "32"):
        return known[2] if torch.get_float32_matmul_precision() == "highest" else known[1]
    return None


class FlopMeter:
    """Counts the FLOPs of training steps, for the videos, sounds and captions that are present.

    Captions count with `max_words` words, as in `vatt.network.flops`.

    Args:
        config: Configuration of the model.
        peak: Peak FLOP/s of the device of this process.
    """

    def __init__(self, config: VATTConfig, peak: float) -> None:
        flops = count_flops(config, num_captions=1)
        self._each = (flops.video, flops.audio, flops.text, flops.heads)
        self._peak = peak
        self._flops = 0

    def add(self, batch: Batch | MicroBatches) -> None:
        """Adds a batch of this process."""
        counts = (*map(batch.facts.num_rows, MODALITIES), len(batch))
        self._flops += sum(map(mul, counts, self._each))

    def utilisation(self, seconds: float) -> float:
        """Share of the peak rate that the added batches used in a given time, in [0, 1]."""
        flops, self._flops = self._flops, 0
        return TRAINING_PASSES * flops / (seconds * self._peak)


def flop_meter(network: nn.Module | None, device: torch.device, precision: str) -> FlopMeter | None:
    """Meter for a network; None if its FLOPs cannot be counted or the peak is unknown.

    Args:
        network: Network to train.
        device: Device of the training.
        precision: Precision of Lightning's trainer, such as `bf16-mixed`.
    """
    config = getattr(network, "config", None)
    if not isinstance(config, VATTConfig):
        return None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    peak = peak_flops(name, precision)
    return None if peak is None else FlopMeter(config, peak)
