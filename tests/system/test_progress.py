"""Progress of long work, on a terminal and in a log file."""

import contextlib
import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator

import pytest

import vatt.system.progress
from vatt.system.progress import few_lines, line_seconds, on_terminal, progress_bar


@contextlib.contextmanager
def terminal(columns: int) -> Iterator[int]:
    """A terminal in the place of standard error; yields the descriptor of its other end."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(writer, "w") as stream, contextlib.redirect_stderr(stream):
        yield reader
    os.close(reader)


def test_log_gets_lines_and_no_carriage_returns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vatt.system.progress, "LINE_SECONDS", 0.0)
    for _ in progress_bar(range(200), "check", unit="file"):
        pass
    lines = capsys.readouterr().err.split("\n")
    assert "\r" not in "".join(lines)
    assert lines[-1] == ""
    assert len(lines) > 2
    assert all(line.startswith("check: ") and line.endswith(" left") for line in lines[:-1])
    assert lines[-2].startswith("check: 200 of 200 files (100 %), ")


def test_short_work_leaves_nothing_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(range(1000), "check", unit="file")) == list(range(1000))
    assert capsys.readouterr().err == ""


def test_a_command_of_many_stages_may_have_fewer_lines_but_not_more() -> None:
    usual = line_seconds()
    with few_lines(10 * usual):
        assert line_seconds() == 10 * usual
    with few_lines(usual / 10):
        assert line_seconds() == usual
    assert line_seconds() == usual


def test_work_of_unknown_extent_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vatt.system.progress, "LINE_SECONDS", 0.0)
    list(progress_bar(iter("abc"), "encode", unit="text"))
    assert "encode: 3 texts in 00:00" in capsys.readouterr().err


def test_terminal_gets_a_bar() -> None:
    with terminal(columns=60) as reader:
        assert on_terminal()
        list(progress_bar(range(5), "check", unit="file"))
        drawn = os.read(reader, 10_000).decode()
    assert "\rcheck: 100%|" in drawn
    assert max(map(len, drawn.replace("\n", "").split("\r"))) <= 60


def test_terminal_without_a_width_is_treated_as_a_log() -> None:
    with terminal(columns=0):
        assert not on_terminal()
