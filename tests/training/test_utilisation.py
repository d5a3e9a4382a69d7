"""Model FLOP/s utilisation: what counts, against which peak, and where it is not logged."""

from pathlib import Path

import pytest
import torch
from training_runs import fit_arguments, read_rows

from vatt.batch import Batch
from vatt.cli import main
from vatt.config.presets import preset
from vatt.network.flops import count_flops
from vatt.network.model import VATT
from vatt.training.utilisation import PEAKS, FlopMeter, flop_meter, peak_flops

METRIC = "perf/model_flops_utilisation"
H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        (H100, "bf16-mixed", 989.5e12),
        (H100, "16-mixed", 989.5e12),
        (H100, "32-true", 67e12),
        ("NVIDIA H100 PCIe", "bf16-mixed", 756.5e12),
        ("NVIDIA H200", "bf16-true", 989.5e12),
        ("NVIDIA A100-SXM4-80GB", "bf16-mixed", 312e12),
        (f"{H100} MIG 1g.10gb", "bf16-mixed", None),
        (H100, "64-true", None),
        ("NVIDIA GeForce RTX 4090", "bf16-mixed", None),
        ("cpu", "32-true", None),
    ],
)
def test_peak_is_that_of_the_device_and_its_precision(
    name: str, precision: str, peak: float | None
) -> None:
    assert peak_flops(name, precision) == peak


def test_float32_has_the_peak_of_tf32_where_torch_may_use_it() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        assert peak_flops(H100, "32-true") == 494.5e12
    finally:
        torch.set_float32_matmul_precision("highest")


def test_meter_counts_what_is_there_and_starts_anew() -> None:
    config = preset("tiny")
    flops = count_flops(config, num_captions=1)
    meter = FlopMeter(config, peak=1e9)
    text = torch.ones(3, 2, config.text.max_words, dtype=torch.int64)
    text[0, 1] = 0  # five captions
    meter.add(
        Batch(
            video=torch.zeros(3, 4, 32, 32, 3, dtype=torch.uint8),
            audio=torch.zeros(3, config.audio.num_samples),
            text=text,
            audio_mask=torch.tensor([True, False, False]),
        )
    )
    meter.add(Batch(audio=torch.zeros(2, config.audio.num_samples)))
    forward = 3 * flops.video + 3 * flops.audio + 5 * flops.text + 5 * flops.heads
    assert meter.utilisation(seconds=2.0) == pytest.approx(3 * forward / 2e9)
    assert meter.utilisation(seconds=2.0) == 0


def test_there_is_no_meter_without_a_known_peak_or_model(monkeypatch: pytest.MonkeyPatch) -> None:
    network, cpu = VATT(preset("tiny")), torch.device("cpu")
    assert flop_meter(network, cpu, "32-true") is None
    monkeypatch.setitem(PEAKS, "cpu", (1.0, 2.0, 3.0))
    assert flop_meter(network, cpu, "32-true") is not None
    assert flop_meter(torch.nn.Linear(1, 1), cpu, "32-true") is None
    assert flop_meter(None, cpu, "32-true") is None


@pytest.mark.parametrize("known", [True, False])
def test_run_logs_utilisation_where_the_peak_is_known(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    if known:
        monkeypatch.setitem(PEAKS, "cpu", (1e13, 1e13, 1e13))
    options = ["--trainer.max_steps=3", "--trainer.limit_val_batches=0"]
    assert main(fit_arguments(tiny_shards, tmp_path / "run", *options)) == 0
    rows = read_rows(tmp_path / "run")
    assert all((METRIC in row) == known for row in rows)
    assert not known or all(0 < float(row[METRIC]) < 1 for row in rows)
