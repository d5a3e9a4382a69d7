"""The README and the page of results tell what the code does."""

import re
from pathlib import Path

import pytest

from vatt.cli import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tree_names_every_room() -> None:
    block = re.search(r"```\n(vatt/.*?)```", README, re.DOTALL)[1]
    listed = re.findall(r"^ +(\w+)/ ", block, re.MULTILINE)
    rooms = (path.parent.name for path in (ROOT / "vatt").glob("*/__init__.py"))
    assert sorted(listed) == sorted(rooms)


def test_tables_of_models_are_what_the_doctor_prints(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", "--model", "all"]) == 0
    printed = capsys.readouterr().out
    assert printed in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    full = [cells(line) for line in printed.splitlines()[2:]]
    short = [cells(line) for line in re.findall(r"^\| `.* M \|.*$", README, re.MULTILINE)]
    assert short == [[preset, parameters, gflops] for preset, parameters, _, gflops, *_ in full]


def cells(line: str) -> list[str]:
    """Cells of a line of a table; of the README's, without the description."""
    found = [cell.strip(" `") for cell in line.strip("|").split("|")]
    return [found[0], *found[2:]] if len(found) == 4 else found


def test_it_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 200
    assert max(map(len, lines)) <= 120
