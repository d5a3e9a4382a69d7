"""The benchmark of the network runs, and says what it measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_model import (
    H100,
    main,
    measure_training,
    training_rows,
)

from vatt.config.presets import preset
from vatt.gpu_check.figures import Row, median_seconds
from vatt.network.flops import count_flops

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmarks" / "bench_model.py"
CPU = torch.device("cpu")


# what torch's compiler does beside compiling: see tests/training/test_compute.py
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_quick_run_says_everything_that_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "results" / "bench.json"
    assert main(["--quick", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert content["machine"]["threads"] >= 1
    rows = [row for section in content["sections"].values() for row in section["rows"]]
    printed = capsys.readouterr().out
    assert all(row["value"] > 0 and row["what"] in printed for row in rows)
    bounds = [row["at_least"] or row["at_most"] for row in rows if row["case"].endswith("tokens")]
    assert {0.85, 0.5, 1.05} <= set(bounds)
    trained = [row["what"] for row in rows if row["case"] == "tiny, compiled"]
    assert trained == ["batch", "training", "model FLOP/s", "model FLOP/s utilisation"]
    assert trained == [row["what"] for row in rows if row["case"] == "tiny"]


def test_steps_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = median_seconds(steps, 3, CPU)
    assert "".join(order) == "abababab"
    assert seconds.keys() == steps.keys()


def test_utilisation_is_three_forward_passes_of_all_clips_by_time_and_peak() -> None:
    config = preset("tiny")
    rows = training_rows("tiny", config, 8, 0.5, CPU, 1e12)
    values = {row.what: row.value for row in rows}
    assert values["training"] == 16
    forward = count_flops(config, num_captions=5).total  # DropToken as in training
    assert values["model FLOP/s utilisation"] == pytest.approx(3 * forward * 16 / 1e12)
    assert "model FLOP/s utilisation" not in {
        row.what for row in training_rows("tiny", config, 8, 0.5, CPU, None)
    }


@pytest.mark.parametrize(
    ("case", "peak", "goal"),
    [
        ("ma-medium, compiled", H100, 0.4),
        ("ma-medium", H100, None),
        ("ma-medium, compiled", H100 / 2, None),
    ],
)
def test_goal_is_that_of_the_compiled_medium_model_on_an_h100(
    case: str, peak: float, goal: float | None
) -> None:
    rows = training_rows(case, preset("tiny"), 8, 0.5, CPU, peak)
    assert [row.at_least for row in rows if row.what == "model FLOP/s utilisation"] == [goal]


def test_first_batch_that_fits_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    draw = torch.randint

    def draw_what_fits(high: int, size: tuple[int, ...], **options: object) -> torch.Tensor:
        if size[0] > 2:
            raise torch.OutOfMemoryError
        return draw(high, size, **options)

    monkeypatch.setattr(
        torch,
        "randint",
        lambda *args, **options: (
            draw_what_fits(*args, **options) if len(args) == 2 else draw(*args, **options)
        ),
    )

    def measure(*batch_sizes: int) -> list[Row]:
        return measure_training(
            "tiny",
            preset("tiny"),
            CPU,
            compile_backend=None,
            batch_sizes=batch_sizes,
            peak=None,
            rounds=1,
        )

    assert measure(4, 2, 1)[0].value == 2
    assert measure(8, 4) == []
    assert "no batch of 4 clips fits" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_one_sentence(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "needs a GPU" in capsys.readouterr().err


def test_needs_neither_media_nor_lightning() -> None:
    code = (
        "import sys; from bench_model import measure_tower; "
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{SCRIPT.parent}:{SCRIPT.parents[1]}"},
    )
    loaded = set(done.stdout.split())
    assert {"torch", "vatt"} <= loaded
    assert not loaded & {"av", "lightning", "wandb", "torchaudio", "jsonargparse", "tokenizers"}
