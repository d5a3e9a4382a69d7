"""Short options, help and early checks of the training commands."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from vatt.cli import main
from vatt.commands.training_options import SHORT, expand
from vatt.config.shipped import shipped_configs


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--train", "shards/a"], ["--data.init_args.train=shards/a"]),
        (["--train=my shards"], ["--data.init_args.train=my shards"]),
        (["--train", "a", "b", "--steps", "9"], ['--data.init_args.train=["a", "b"]', "steps=9"]),
        (["--train", "{a: 1, b: 2}"], ["--data.init_args.train={a: 1, b: 2}"]),
        (["-o", "runs/a"], ["--run.dir=runs/a"]),
        (["--minutes", "30"], ["--run.time_budget_seconds=1800.0"]),
        (
            ["--out=runs/a", "--trainer.devices", "2"],
            ["--run.dir=runs/a", "--trainer.devices", "2"],
        ),
    ],
)
def test_short_options_stand_for_settings(given: Sequence[str], expected: Sequence[str]) -> None:
    wanted = [one.replace("steps=", "--trainer.max_steps=") for one in expected]
    assert expand(given) == wanted


def test_a_run_gets_what_the_short_options_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, validation = tmp_path / "train ä b", tmp_path / "validation"
    train.mkdir()
    validation.mkdir()
    options = ["--train", str(train), "--val", str(validation), "--out", str(tmp_path / "run")]
    options += ["--steps", "7", "--batch-size", "4", "--seed", "3", "--workers", "1"]
    options += ["--learning-rate", "0.5", "--minutes", "2", "--init-from", "MODEL"]
    assert {name for name in options if name.startswith("--")} == set(SHORT)
    assert main(["fit", "--config", "tiny", *options, "--print_config"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["data"]["init_args"]["train"] == str(train)
    assert settings["data"]["init_args"]["validation"] == str(validation)
    assert settings["data"]["init_args"]["batch_size"] == 4
    assert settings["data"]["init_args"]["num_workers"] == 1
    assert settings["model"]["init_args"]["optimizer"]["learning_rate"] == 0.5
    assert settings["model"]["init_args"]["init_from"] == "MODEL"
    assert settings["trainer"]["max_steps"] == 7
    assert settings["run"]["dir"] == str(tmp_path / "run")
    assert settings["run"]["time_budget_seconds"] == 120
    assert settings["seed_everything"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "tinny"], "no configuration 'tinny': .* Did you mean tiny?"),
        (["--config", "tiny", "--train", "nowhere"], "data.train: there is no folder nowhere"),
        (["--config", "tiny", "--val", "no/where"], "data.validation: there is no folder no/where"),
        (["--train", "--steps", "3"], "--train needs a value: --train SHARDS…"),
        (["--config", "tiny"], "data.train is missing: give --train SHARDS…"),
        (["--config", "finetune_own"], "data.train is missing: give --train SHARDS…"),
        (["--minutes", "ten"], "--minutes is a number, got 'ten'"),
    ],
)
def test_mistakes_are_told_before_torch_is_loaded(options: Sequence[str], message: str) -> None:
    # None stands for a module that cannot be imported
    code = "import sys; sys.modules |= dict.fromkeys(['torch', 'lightning']); "
    code += "from vatt.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "fit", *options], capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("vatt: ")
    assert re.search(message, line)


def test_fit_without_a_configuration_says_which_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for options in ([], ["--train", "shards", "--steps", "3"]):
        assert main(["fit", *options]) == 2
        first, *lines = capsys.readouterr().err.splitlines()
        assert "start with --config demo" in first
        assert [line.split()[0] for line in lines] == list(shipped_configs())
        assert all(len(line.split()) > 3 for line in lines)
        assert max(map(len, lines)) <= 110
    assert main(["validate"]) == 2
    assert "give that of the run" in capsys.readouterr().err


def test_help_of_fit_is_one_screen_and_names_what_people_set(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", "--help"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 30
    assert max(map(len, shown.splitlines())) <= 100
    assert all(name in shown for name in (*SHORT, "--help-all", *shipped_configs()))
