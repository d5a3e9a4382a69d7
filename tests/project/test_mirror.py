"""The tests mirror the rooms."""

from pathlib import Path

import pytest

import vatt

ROOT = Path(__file__).resolve().parents[2]
RUNS = {"commands": "main(", "runs": "fit_arguments("}  # by the command line
RUNS["encoders"] = "FeatureExtractor"


@pytest.mark.parametrize("room", [path.parent.name for path in ROOT.glob("vatt/*/__init__.py")])
def test_the_tests_of_a_room_stand_in_its_folder(room: str) -> None:
    files = list((ROOT / "tests" / room).glob("test_*.py"))
    assert files
    public = [name for name in vatt.__all__ if f"vatt.{room}." in getattr(vatt, name).__module__]
    words = [f"vatt.{room}", RUNS.get(room, f"vatt.{room}"), *public]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert [name for name, text in texts.items() if not any(word in text for word in words)] == []
