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
    sections = json.loads(out.read_text())["sections"]
    assert sections.keys() == {"speed", "long"}
    assert all(row["value"] > 0 for section in sections.values() for row in section["rows"])
    assert "of one after the other" in shown
