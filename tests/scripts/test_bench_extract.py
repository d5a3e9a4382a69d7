"""The benchmark of the extraction runs, and measures what it says."""

import json
import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmarks" / "bench_extract.py"


@pytest.mark.slow
def test_benchmark_of_the_extraction_measures_every_part(tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(out)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    sections = json.loads(out.read_text())["sections"]
    assert sections.keys() == {"speed", "long", *(["others"] if find_spec("transformers") else [])}
    rows = [row for section in sections.values() for row in section["rows"]]
    # a worker's start is taken off the time of so few files: noise can make that negative
    assert all(math.isfinite(row["value"]) for row in rows)
    assert {"windows", "reading", "model", "extraction", "largest process"} <= {
        row["what"] for row in rows if row["value"] > 0
    }
    assert "of one after the other" in shown
