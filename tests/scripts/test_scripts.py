"""The scripts on a bare machine: bash is real; python3, df and nvidia-smi on PATH are stand-ins."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")
TOOLS = (
    "awk bash cat cksum cp df dirname env flock grep head ls mkdir mv rm sed sleep tail touch uname wc".split()  # noqa: E501, SIM905
)

# Stands for the machine's Python, for the environment's and for pip: writes down how it was called.
PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case "$*" in
    --version) echo "Python ${PYTHON_VERSION:-3.11.2}" ;;
    *"version_info < (3, 11)"*) [[ "${PYTHON_VERSION:-3.11.2}" != 3.9* ]] ;;
    *ensurepip*) [[ -z "${WITHOUT_VENV:-}" ]] ;;
    "-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip download"*)
        while [[ "$1" != --dest ]]; do shift; done
        mkdir "$2" && echo wheel >"$2/av-18.whl" ;;
    "-m pip"*)
        sleep "${PIP_SECONDS:-0}"
        if [[ -n "${PIP_FAILS_ON:-}" && "$*" =~ $PIP_FAILS_ON ]]; then
            echo "ERROR: the package index says no"
            exit 1
        fi ;;
esac
"""
LITTLE_DISK = """#!/usr/bin/env bash
echo "Filesystem 1024-blocks Used Available Capacity Mounted on"
echo "/dev/sda1 20000000 18951424 1048576 95% /"
"""
GPU = """#!/usr/bin/env bash
echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)"
"""

pytestmark = pytest.mark.skipif(shutil.which("flock") is None, reason="the lock needs flock")


class Machine:
    """A checkout and a PATH that holds nothing but what is put there."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "my checkout"
        self.bin = folder / "bin"
        self.calls_file = folder / "calls"
        self.checkout.mkdir()
        self.bin.mkdir()
        self.calls_file.touch()
        for name in ("scripts", ".ci"):
            shutil.copytree(ROOT / name, self.checkout / name)
        for name in ("setup.py", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.checkout)
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        self.install("python3", PYTHON)

    def install(self, name: str, script: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            [BASH, str(self.checkout / "scripts" / script), *arguments],
            env={"PATH": str(self.bin), "CALLS": str(self.calls_file), **variables},
            cwd=self.bin,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *arguments: str, **variables: str) -> tuple[int, str]:
        process = self.start(script, *arguments, **variables)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def calls(self) -> list[str]:
        """What the stand-in for Python was asked to do since the last question."""
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.write_text("")
        return [line for line in lines if line.startswith("-m")]

    def pip_calls(self) -> list[str]:
        return [line for line in self.calls() if line.startswith("-m pip")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_missing_python_is_told_with_the_packages_to_install(machine: Machine) -> None:
    (machine.bin / "python3").unlink()
    code, errors = machine.run("demo.sh")
    assert code == 1
    assert errors.count("\n") == 1
    assert "Python 3.11 or newer is needed, found none" in errors
    assert "apt-get install python3 python3-venv" in errors
    assert not (machine.checkout / ".venv").exists()


def test_old_python_is_told_with_its_version(machine: Machine) -> None:
    code, errors = machine.run("demo.sh", PYTHON_VERSION="3.9.2")
    assert code == 1
    assert "Python 3.11 or newer is needed, found Python 3.9.2" in errors
    assert "PYTHON=" in errors


def test_missing_venv_module_is_told_with_its_package(machine: Machine) -> None:
    code, errors = machine.run("test.sh", WITHOUT_VENV="1")
    assert code == 1
    assert errors.count("\n") == 1
    assert "apt-get install python3-venv" in errors


def test_python_variable_chooses_the_interpreter(machine: Machine) -> None:
    machine.install("my-python", PYTHON)
    machine.install("python3", "#!/usr/bin/env bash\nexit 1\n")
    assert machine.run("demo.sh")[0] == 1
    assert machine.run("demo.sh", PYTHON=str(machine.bin / "my-python"))[0] == 0


def test_environment_of_another_python_is_neither_used_nor_deleted(machine: Machine) -> None:
    machine.run("demo.sh")
    machine.install("my-python", PYTHON.replace("3.11.2", "3.13.0"))
    other = {"PYTHON": str(machine.bin / "my-python")}
    code, errors = machine.run("demo.sh", **other)
    assert code == 1
    assert f"{machine.checkout}/.venv has Python 3.11.2, PYTHON is Python 3.13.0" in errors
    machine.calls()
    assert machine.run("demo.sh", VATT_VENV=".venv-other", **other)[0] == 0
    assert machine.calls()[0] == f"-m venv {machine.checkout}/.venv-other"
    assert machine.run("demo.sh", PYTHON=str(machine.bin / "python3"))[0] == 0


@pytest.mark.parametrize(("gpu", "gigabytes"), [(False, 4), (True, 12)])
def test_little_disk_is_told_with_what_is_needed(
    machine: Machine, gpu: bool, gigabytes: int
) -> None:
    machine.install("df", LITTLE_DISK)
    if gpu:
        machine.install("nvidia-smi", GPU)
    code, errors = machine.run("demo.sh")
    assert code == 1
    assert f"about {gigabytes} GB of disk are needed in {machine.checkout}" in errors
    assert "1024 MB are free" in errors
    assert not (machine.checkout / ".venv").exists()


def test_first_run_sets_up_and_the_second_does_not(machine: Machine) -> None:
    code, errors = machine.run("demo.sh", "--seed", "3")
    venv, torch, package, demo = machine.calls()
    assert code == 0
    assert venv == f"-m venv {machine.checkout}/.venv"
    assert "--no-index" in torch
    assert torch.endswith("+cpu")
    assert package.endswith(f"-c {machine.checkout}/constraints.txt -e {machine.checkout}")
    assert demo == f"-m vatt.cli demo --out {machine.checkout}/runs/demo --seed 3"
    assert errors.count("\n") == 4  # one line for each step, and how to activate

    code, errors = machine.run("demo.sh", "--out=elsewhere")
    assert (code, errors.count("set-up: "), errors.count("activate")) == (0, 1, 1)
    (demo,) = machine.calls()
    assert demo == f"-m vatt.cli demo --out {machine.checkout}/runs/demo --out=elsewhere"


def test_tests_add_their_tools_to_the_environment_of_the_demo(machine: Machine) -> None:
    machine.run("demo.sh")
    machine.calls()
    code, _ = machine.run("test.sh", "-k", "one or two")
    *_, package, pytest_call = machine.calls()
    assert code == 0
    assert package.endswith(f"-e {machine.checkout}[dev]")
    assert pytest_call == "-m pytest -n 3 --dist worksteal --durations=25 -k one or two"
    machine.run("demo.sh")
    assert machine.pip_calls() == []


def test_torch_for_cpu_comes_from_at_hand_then_its_own_index_then_anywhere(
    machine: Machine,
) -> None:
    code, errors = machine.run("demo.sh", PIP_FAILS_ON=r"\+cpu")
    at_hand, own_index, anywhere, _ = machine.pip_calls()
    assert code == 0
    assert "--no-index" in at_hand
    assert "--index-url https://download.pytorch.org/whl/cpu" in own_index
    assert "index" not in anywhere
    assert "+cpu" not in anywhere
    assert "taking torch with CUDA" in errors


def test_with_a_gpu_torch_is_not_the_cpu_build(machine: Machine) -> None:
    machine.install("nvidia-smi", GPU)
    machine.run("demo.sh")
    torch, _ = machine.pip_calls()
    assert "!=" in torch.split()[-1]
    assert "index" not in torch


def test_failure_shows_the_end_of_pips_output_and_the_next_run_starts_over(
    machine: Machine,
) -> None:
    code, errors = machine.run("demo.sh", PIP_FAILS_ON="constraints")
    assert code == 1
    assert "ERROR: the package index says no" in errors
    assert f"{machine.checkout}/.venv/setup.log" in errors
    assert not any(call.startswith("-m vatt") for call in machine.calls())
    assert machine.run("demo.sh")[0] == 0
    assert machine.calls()[0].startswith("-m venv")


@pytest.mark.parametrize("script", ["demo.sh", "test.sh"])
def test_scripts_end_with_the_line_that_activates_the_environment(
    machine: Machine, script: str
) -> None:
    code, errors = machine.run(script)
    assert code == 0
    line = errors.splitlines()[-1]
    activate = machine.checkout / ".venv" / "bin" / "activate"
    assert shlex.split(line)[-2:] == ["source", str(activate)]
    code, errors = machine.run(script, VIRTUAL_ENV=str(activate.parents[1]))
    assert (code, "activate" in errors) == (0, False)


def test_killed_set_up_is_started_over(machine: Machine) -> None:
    process = machine.start("demo.sh", PIP_SECONDS="30")
    wait_for(lambda: "-m pip" in machine.calls_file.read_text())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    machine.calls()
    assert machine.run("demo.sh")[0] == 0
    assert machine.calls()[0].startswith("-m venv")


def test_changed_requirements_are_installed_into_the_same_environment(machine: Machine) -> None:
    machine.run("demo.sh")
    machine.calls()
    with (machine.checkout / "constraints.txt").open("a") as file:
        file.write("numpy==2.4.6\n")
    machine.run("demo.sh")
    torch, package, _ = machine.calls()
    assert torch.startswith("-m pip")
    assert package.startswith("-m pip")


def test_environment_made_by_hand_is_never_deleted(machine: Machine) -> None:
    mine = machine.checkout / ".venv" / "bin"
    mine.mkdir(parents=True)
    shutil.copy(machine.bin / "python3", mine / "python")
    (mine / "treasure").touch()
    assert machine.run("demo.sh", PIP_FAILS_ON="constraints")[0] == 1
    assert machine.run("demo.sh")[0] == 0
    assert (mine / "treasure").exists()


def test_two_set_ups_at_once_take_turns(machine: Machine) -> None:
    first = machine.start("demo.sh", PIP_SECONDS="0.5")
    wait_for(lambda: "-m pip" in machine.calls_file.read_text())
    second = machine.start("demo.sh")
    _, errors = second.communicate(timeout=60)
    first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "another set-up" in errors
    calls = machine.calls()
    assert sum(call.startswith("-m pip") for call in calls) == 2
    assert sum(call.startswith("-m vatt") for call in calls) == 2


OTHER_PYTHON = "../.ci/other_python.sh"


def test_other_python_is_tested_with_the_newest_packages_outside_the_checkout(
    machine: Machine, tmp_path: Path
) -> None:
    machine.install("python3.13", PYTHON.replace("3.11.2", "3.13.0"))
    code, errors = machine.run(OTHER_PYTHON, "test", HOME=str(tmp_path))
    venv, torch, package, ruff, pip, pytest_call = machine.calls()
    assert code == 0, errors
    assert venv == f"-m venv {tmp_path}/.cache/vatt-ci/3.13"
    assert torch.endswith("+cpu")
    assert package.endswith(
        f"install --no-input --disable-pip-version-check -e {machine.checkout}[dev]"
    )
    assert (ruff, pip) == ("-m ruff check", "-m pip list --format freeze")
    assert pytest_call.startswith("-m pytest")


@pytest.mark.parametrize(
    ("names", "reason"),
    [((), "no Python 3.12 or 3.13 here"), (("python3.12",), "12 GB of disk are needed")],
)
def test_other_python_that_cannot_be_tested_is_skipped_with_the_reason(
    machine: Machine, tmp_path: Path, names: tuple[str, ...], reason: str
) -> None:
    machine.install("df", LITTLE_DISK)
    for name in names:
        machine.install(name, PYTHON)
    process = machine.start(OTHER_PYTHON, "set-up", HOME=str(tmp_path))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"other Python: skipped, {reason}" in output.replace("there is ", "")
    assert machine.calls() == []


SRUN = """#!/usr/bin/env bash
echo "srun with ${SRUN_CPUS_PER_TASK:-} cores: $*" >>"$CALLS"
exit "${FIT_CODE:-0}"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$CALLS"
"""
JOB = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "4", "SLURM_NTASKS_PER_NODE": "8"}
JOB |= {"SLURM_CPUS_PER_TASK": "12"}


@pytest.fixture
def cluster(machine: Machine) -> Machine:
    machine.install("srun", SRUN)
    machine.install("scontrol", SCONTROL)
    return machine


def submit(cluster: Machine, *arguments: str, **variables: str) -> tuple[int, list[str]]:
    job = {**JOB, "SLURM_SUBMIT_DIR": str(cluster.checkout), **variables}
    code, *_ = cluster.run("slurm_pretrain.sh", *arguments, **job)
    return code, cluster.calls_file.read_text().splitlines()


def test_slurm_job_trains_on_all_its_nodes_from_the_last_checkpoint(cluster: Machine) -> None:
    code, calls = submit(cluster, "--config", "tiny", "--run.dir=/disk/run", "--x", "[a, b]")
    assert code == 0
    assert calls == [
        f"srun with 12 cores: --kill-on-bad-exit=1 {cluster.checkout}/.venv/bin/vatt fit "
        "--config tiny --run.dir=/disk/run --x [a, b] --ckpt_path last --trainer.num_nodes 4 "
        "--trainer.devices 8"
    ]


@pytest.mark.parametrize(("fit_code", "requeued"), [("0", False), ("1", False), ("143", True)])
def test_slurm_job_is_queued_again_only_when_it_was_stopped(
    cluster: Machine, fit_code: str, requeued: bool
) -> None:
    code, calls = submit(cluster, "--run.dir", "/disk/run", FIT_CODE=fit_code)
    assert code == int(fit_code)
    assert calls[1:] == (["scontrol requeue 7"] if requeued else [])


def test_slurm_job_without_a_directory_of_its_own_is_refused(cluster: Machine) -> None:
    code, calls = submit(cluster, "--config", "tiny")
    assert (code, calls) == (2, [])


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_gpu_check_downloads_wheels_of_the_constraints_and_weighs_them(machine: Machine) -> None:
    machine.install("git", "#!/usr/bin/env bash\nhead -c 1000000 /dev/zero\n")
    code, errors = machine.run("gpu_check.sh", "wheels", PACKAGES="av jsonargparse")
    assert (code, errors) == (0, "")
    (call,) = machine.pip_calls()
    assert "--only-binary=:all:" in call
    assert "--python-version 3.12" in call
    assert re.search(r" av==\d[\d.]* jsonargparse==\d[\d.]*$", call)
    machine.install("git", "#!/usr/bin/env bash\nhead -c 68000000 /dev/zero\n")
    code, errors = machine.run("gpu_check.sh", "wheels")
    assert code == 1
    assert "more than 64 MiB" in errors


def test_gpu_check_installs_wheels_without_a_network_and_passes_options_on(
    machine: Machine,
) -> None:
    wheels = machine.checkout / ".wheels"
    wheels.mkdir()
    (wheels / "av-18.whl").touch()
    code, errors = machine.run("gpu_check.sh", "--only", "parity")
    assert (code, errors) == (0, "")
    install, check = machine.calls()
    assert "--no-index --no-deps" in install
    assert install.endswith(f"--target {wheels / 'site'} {wheels / 'av-18.whl'}")
    assert check == "-m vatt.cli doctor --gpu --only parity"
