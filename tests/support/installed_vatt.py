"""vatt as users install it: a copy of the checkout, installed into a fresh environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "NOTICE",
    "vatt",
    "datamodules",
    "configs",
)


def user_environment() -> dict[str, str]:
    """Variables of this process without those of Python and of tests."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "PYTHON", "COV"))
    }


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command that runs as a user's would, without this test's variables."""
    environment = user_environment()
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copy_checkout(folder: Path) -> Path:
    """Copy of what is shipped."""
    folder.mkdir(parents=True)
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                folder / name,
                symlinks=True,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def install(environment: Path, *what: str | Path) -> Path:
    """Folder `bin` of a fresh environment with vatt; all other packages are this test's own."""
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=ROOT)
    inside = {"base": str(environment), "platbase": str(environment)}
    site_packages = Path(sysconfig.get_path("purelib", scheme="venv", vars=inside))
    # A path line in a .pth file adds a folder but does not run that folder's own .pth files:
    # the others' packages come along, an editable vatt among them does not.
    (site_packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin" / "python")
    options = ("install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet")
    run(*pip, *options, *what, cwd=environment)
    return environment / "bin"
