"""The benchmark of the extraction runs, and measures what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmarks" / "bench_extract.py"


@pytest.mark.slow
def test_benchmark_of_the_extraction_measures_every_part(tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(out)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = json.loads(out.read_text())
    assert all(value > 0 for value in numbers["speed"].values())
    assert numbers["long"]["gib"] > 0
    assert "of one after the other" in shown
