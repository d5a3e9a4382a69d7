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
    sections = json.loads(out.read_text())["sections"]
    cases = {name: {row["case"] for row in part["rows"]} for name, part in sections.items()}
    forms = ("asymmetric", "symmetric", "sigmoid")
    assert cases == {
        "loss": {f"{form}, G {columns}" for form in forms for columns in (256, 512)},
        "gather": {"G 256", "G 512"},
        "steps": {f"{n} clips, {k} micro-batches" for n, k in ((4, "without"), (4, 1), (8, 2))},
    }
    assert all(row["value"] > 0 for part in sections.values() for row in part["rows"])
    assert "without micro-batches" in shown
