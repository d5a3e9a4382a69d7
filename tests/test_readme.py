"""What the README says about the repository is so."""

import re
from pathlib import Path

import pytest

from vatt.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tree_names_every_file_of_both_packages() -> None:
    block = re.search(r"```\n(vatt/.*?)```", README, re.DOTALL)[1]
    listed: dict[str, list[str]] = {}
    for line in block.splitlines():
        if folder := re.match(r"(\w+)/", line):
            listed[folder[1]] = files = []
        elif file := re.match(r"[ *]+(\w+\.\w+) ", line):
            files.append(file[1])
    for package in ("vatt", "datamodules"):
        present = {path.name for path in (ROOT / package).glob("*.*")}
        assert set(listed[package]) == present - {"__init__.py", "py.typed"}
        assert len(listed[package]) == len(set(listed[package]))


def test_table_of_models_is_what_the_doctor_prints(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", "--model", "all"]) == 0
    assert capsys.readouterr().out in README
