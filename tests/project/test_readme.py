"""What the README says about the repository is so."""

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


def test_table_of_models_is_what_the_doctor_prints(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", "--model", "all"]) == 0
    assert capsys.readouterr().out in README
