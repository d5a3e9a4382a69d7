"""The stages of `vatt doctor --gpu`: all on a CPU, and on a GPU those that say what is right."""

import json
from pathlib import Path
from typing import get_args

import pytest

from vatt.cli import main
from vatt.gpu_check.check import run_stage
from vatt.gpu_check.options import GpuCheckOptions, StageName


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_stages_run_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--gpu", "--quick", "--device", "cpu", "--minutes", "14"]
    assert main(["doctor", *options, "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert {name: stage["outcome"] for name, stage in stages.items()} == dict.fromkeys(
        get_args(StageName), "passed"
    )
    assert all(stage["rows"] for stage in stages.values())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["parity", "one-graph", "compile", "waits", "ranks", "run"])
def test_figures_of_a_stage_are_within_their_bounds(name: StageName, tmp_path: Path) -> None:
    result = run_stage(name, GpuCheckOptions(out=tmp_path, quick=True), 280.0)
    assert result["outcome"] == "passed", result
