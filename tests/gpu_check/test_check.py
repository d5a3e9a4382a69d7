"""The check of a GPU runs everywhere, keeps what it measured, and notices what is wrong."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F

from vatt.cli import main
from vatt.gpu_check.check import run_stage
from vatt.gpu_check.figures import Row, rows_table
from vatt.gpu_check.kernels import idle_share
from vatt.gpu_check.options import GpuCheckOptions, StageName
from vatt.gpu_check.parity import measure_parity
from vatt.gpu_check.place import Place
from vatt.gpu_check.recipes import Recipe, train
from vatt.gpu_check.speed import RECIPES, predicted_gib
from vatt.gpu_check.stages import STAGES

ON_CPU = ["doctor", "--gpu", "--quick", "--device", "cpu"]


def test_a_stage_leaves_its_figures_in_a_file_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ON_CPU, "--only", "machine", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("machine")
    assert "passed" in printed.splitlines()[0]
    content = json.loads((tmp_path / "out" / "gpu.json").read_text())
    # installed metadata may lack the build, such as +cu130
    assert torch.__version__.startswith(content["machine"]["torch"])
    assert content["quick"]
    rows = content["stages"]["machine"]["rows"]
    assert len(rows) == 4
    assert all(row["value"] > 0 and row["what"] in printed for row in rows)


@pytest.mark.slow
def test_a_stage_out_of_time_keeps_its_figures_and_leaves_no_process(tmp_path: Path) -> None:
    options = GpuCheckOptions(device="cpu", quick=True, out=tmp_path)
    before = set(_processes())
    result = run_stage("compile", options, 6.0)
    assert result["outcome"] == "out of time"
    assert set(_processes()) <= before
    assert run_stage("compile", options, 1.0)["outcome"] == "no time left"


def _processes() -> list[str]:
    """Numbers of the processes that run a stage."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if b"vatt.gpu_check.stages" in words and str(os.getpid()) != path.parent.name:
            found.append(path.parent.name)
    return found


def test_all_stages_that_can_be_asked_for_exist() -> None:
    assert tuple(STAGES) == get_args(StageName)


def test_parity_finds_an_activation_that_is_one_percent_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gelu = F.gelu

    def wrong(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        result = gelu(x, *args, **options)
        return result if x.dtype == torch.float64 else 1.01 * result

    monkeypatch.setattr(F, "gelu", wrong)
    place = Place(device=torch.device("cpu"), quick=True, out=tmp_path)
    missed = {row.what for row in measure_parity(place) if not row.is_reached}
    assert "features, off" in missed


def test_a_figure_below_or_above_its_bounds_is_not_reached() -> None:
    rows = [Row("case", "what", value, at_least=1, at_most=2) for value in (0.5, 1, 2, 2.5)]
    assert [row.is_reached for row in rows] == [False, True, True, False]
    assert rows[0].bound == "≥ 1, ≤ 2"
    assert rows_table(rows).count("NOT REACHED") == 2


def test_idle_share_counts_time_that_no_kernel_covers_once() -> None:
    assert idle_share([(6.0, 10.0), (0.0, 4.0), (1.0, 2.0), (3.0, 5.0)]) == pytest.approx(0.1)
    assert idle_share([(0.0, 1.0), (1.0, 2.0)]) == 0


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_that_are_measured_are_valid_and_not_compiled(name: str) -> None:
    with torch.device("meta"):
        run = train(RECIPES[name], torch.device("cpu"), starts=False)
    assert not run.model.compile_towers
    assert run.recipe.batch_size >= 64


def test_a_recipe_with_other_options_or_clips_has_no_prediction() -> None:
    recipe = Recipe(config="pretrain_ma_medium", batch_size=7)
    assert predicted_gib(recipe) is None
    assert predicted_gib(replace(recipe, batch_size=256, options=("--x=1",))) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_check_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--gpu", "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert "torch sees no GPU" in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
