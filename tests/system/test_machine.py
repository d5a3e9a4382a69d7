"""Cores count as far as a container lets them be used; threads do not spin for long."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vatt.system.machine import SPIN_COUNT, num_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "99999900000 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "30000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_the_quota_of_a_container_bounds_the_cores(
    tmp_path: Path, files: dict[str, str], cores: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert num_cores(tmp_path) == (cores or num_cores(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("own", "count"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_every_command_limits_how_long_threads_spin_unless_the_user_chose(
    own: dict[str, str], count: str | None
) -> None:
    code = (
        "import os, sys; from vatt.cli import main; main(['--version'])\n"
        "assert 'torch' not in sys.modules\n"  # which reads it when it is loaded
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    others = {
        name: value
        for name, value in os.environ.items()
        if name not in (SPIN_COUNT, "OMP_WAIT_POLICY")
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=others | own, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(count)
