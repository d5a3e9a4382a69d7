"""Renews requirements.lock: versions and hashes of all packages that vatt needs, for pip.

    pip install uv && python scripts/lock.py

Versions are those of constraints.txt. The libraries of CUDA, which torch for the CPU does not need,
are apart: requirements.lock names them and reads the rest from requirements-cpu.lock.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADER = "# Written by scripts/lock.py from setup.py and constraints.txt: do not edit.\n"
CPU_LOCK, LOCK = "requirements-cpu.lock", "requirements.lock"
CUDA = ("cuda-", "nvidia-", "triton==")
NOT_LINUX = re.compile(r".* sys_platform == '(win32|emscripten)'")
COMPILE = (
    *(sys.executable, "-m", "uv", "pip", "compile", "setup.py", "--constraint", "constraints.txt"),
    *("--universal", "--python-version=3.11", "--generate-hashes"),  # 3.11 and all later ones
    *("--no-annotate", "--no-header", "--quiet"),
)


def entries(text: str) -> list[str]:
    """Requirements of a lock file, each with the lines of its hashes; those for Linux."""
    found = [entry + "\n" for entry in re.split(r"\n(?=\S)", text.strip()) if entry[0] not in "#-"]
    return [entry for entry in found if not NOT_LINUX.match(entry)]


def split(text: str) -> tuple[str, str]:
    """Contents of the two lock files, from all requirements."""
    needed = [entry for entry in entries(text) if not entry.startswith(CUDA)]
    cuda = [entry for entry in entries(text) if entry.startswith(CUDA)]
    return HEADER + "".join(needed), f"{HEADER}-r {CPU_LOCK}\n" + "".join(cuda)


def main() -> None:
    """Writes both files."""
    done = subprocess.run(COMPILE, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)  # uv says why
    for name, content in zip((CPU_LOCK, LOCK), split(done.stdout), strict=True):
        (ROOT / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
