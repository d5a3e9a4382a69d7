"""`vatt.runs.data_package`: another package `datamodules` on the path, as many projects have."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vatt

ROOT = Path(vatt.__file__).resolve().parents[1]


# As installed by `pip install .`; an editable one finds the modules of its packages everywhere.
CODE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]
from vatt.cli import main
sys.exit(main(["fit", "--config", "tiny", "--print_config"]))
"""


def print_config(folder: Path) -> tuple[int, str]:
    """Exit code and errors of a command that finds the packages of `folder` first."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path}
    command = (sys.executable, "-c", CODE)
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_the_package_of_another_project_is_named_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "datamodules").mkdir()
    (tmp_path / "datamodules" / "__init__.py").write_text("class MyData: ...\n")
    code, errors = print_config(tmp_path)
    assert code == 2
    assert f"datamodules.pretrain.PretrainData is not in {tmp_path / 'datamodules'}" in errors
    assert "rename it" in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_a_copy_of_ours_is_as_good_as_ours(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "datamodules", tmp_path / "datamodules")
    assert print_config(tmp_path)[0] == 0
