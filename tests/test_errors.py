"""Errors: which are sentences for the user, and which are bugs."""

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import vatt
from vatt.cli import COMMANDS, main
from vatt.errors import (
    SHOWN_FAULTS,
    CheckpointError,
    ConversionError,
    Fault,
    MediaError,
    ShardError,
    UserError,
    VattError,
    fault_lines,
)

KINDS = {
    "UserError('give another')": "give another",
    "ShardError('give another')": "give another",
    "CheckpointError('give another')": "give another",
    "ConversionError('give another')": "give another",
    "MediaError('a.mp4', 'give another')": "a.mp4: give another",
    "FileNotFoundError(2, 'No such file', 'a.mp4')": "a.mp4: No such file: check this path",
}


@pytest.fixture
def command_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A command that raises what its argument says."""
    (tmp_path / "command_that_raises.py").write_text(
        "from vatt.errors import *\n\n"
        "def explode(error: str) -> int:\n"
        '    """Raises.\n\n    Args:\n        error: Python code.\n    """\n'
        "    raise eval(error)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("command_that_raises")
    monkeypatch.setitem(sys.modules, "vatt.commands.explode", module)
    monkeypatch.setitem(COMMANDS, "explode", "raises")
    return "explode"


@pytest.mark.parametrize("raised", KINDS)
def test_what_a_user_can_put_right_is_one_line(
    raised: str, command_that_raises: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command_that_raises, raised]) == 1
    assert capsys.readouterr().err == f"vatt: {KINDS[raised]}\n"


@pytest.mark.parametrize("raised", ["ValueError('3 axes')", "TypeError('no str')", "OSError('io')"])
def test_a_bug_shows_where_it_is_and_how_to_report_it(
    raised: str, command_that_raises: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command_that_raises, raised]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert any("command_that_raises.py" in line for line in lines)
    assert lines[-1].startswith(f"vatt: this is a bug of vatt {vatt.__version__}")


def test_traceback_of_a_user_error_is_shown_on_request(
    command_that_raises: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VATT_TRACEBACK", "1")
    with pytest.raises(UserError, match="give another"):
        main([command_that_raises, "UserError('give another')"])


def test_exit_code_is_the_error_s_own(command_that_raises: str) -> None:
    assert main([command_that_raises, "UserError('give another', 2)"]) == 2


@pytest.mark.parametrize(
    "error",
    [
        *(UserError("a", 2), ShardError("a"), CheckpointError("a"), ConversionError("a")),
        MediaError("a.mp4", "is damaged"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_the_way_between_processes(error: VattError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


@pytest.mark.parametrize("kind", [UserError, ShardError, CheckpointError, ConversionError])
def test_errors_of_values_are_caught_as_value_errors(kind: type[VattError]) -> None:
    assert issubclass(kind, ValueError)
    assert getattr(vatt, kind.__name__) is kind


def test_only_the_first_faults_are_shown_and_all_are_counted() -> None:
    faults = [Fault(f"line {number}", "is empty") for number in range(SHOWN_FAULTS + 3)]
    lines = fault_lines(faults, "left out")
    assert lines[0] == "  left out: line 0: is empty"
    assert lines[-1] == "  … and 3 more"
    assert len(lines) == SHOWN_FAULTS + 1
    assert fault_lines(faults[:1]) == ["  line 0: is empty"]


def test_errors_need_the_standard_library_only() -> None:
    code = (
        "import sys\nfrom vatt.errors import VattError\n"
        "print({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = eval(done.stdout)
    assert not loaded & {"torch", "numpy", "av", "lightning", "yaml"}
