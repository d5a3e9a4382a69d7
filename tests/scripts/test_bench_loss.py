"""The benchmark of the loss: it runs, and what it claims about memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmarks" / "bench_loss.py"


@pytest.mark.slow
def test_benchmark_of_the_loss_measures_every_part(tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(out)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = json.loads(out.read_text())
    assert numbers["loss"].keys() == {
        f"{form} {columns}"
        for form in ("asymmetric", "symmetric", "sigmoid")
        for columns in (256, 512)
    }
    assert numbers["gather"].keys() == {"256", "512"}
    assert numbers["accumulation"].keys() == {"1", "2"}
    assert all(one["seconds"] > 0 for part in numbers.values() for one in part.values())
    assert "without micro-batches" in shown
