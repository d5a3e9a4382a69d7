"""Requirements in setup.py, constraints, lock files and sentences about extras fit together."""

import re
from pathlib import Path

import pytest
from lock import CPU_LOCK, CUDA, LOCK, entries, split
from setup_file import setup_argument

from vatt.shards import stores

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"[\w.-]+")


EXTRAS: dict[str, list[str]] = setup_argument("extras_require")


def pins(name: str) -> dict[str, str]:
    """Versions in a file of requirements, by name of the package."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {normal(package): version for package, version in found}


def normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def names(requirements: list[str]) -> set[str]:
    return {normal(NAME.match(one)[0]) for one in requirements}


def test_all_has_every_extra_that_users_install() -> None:
    (all_of_them,) = EXTRAS["all"]
    assert set(re.findall(r"[\w-]+", all_of_them)) == {"vatt", *EXTRAS} - {"all", "dev"}


def test_sentences_name_extras_that_exist() -> None:
    files = [*ROOT.glob("vatt/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    named = {one for found in re.findall(r"vatt\[([\w,-]+)\]", text) for one in found.split(",")}
    assert named
    assert named <= set(EXTRAS)
    assert set(stores.EXTRAS.values()) <= set(EXTRAS)


def test_constraints_pin_every_package_that_setup_names() -> None:
    packages = names(setup_argument("install_requires"))
    packages |= {one for extra in EXTRAS.values() for one in names(extra)}
    assert packages - pins("constraints.txt").keys() == {"vatt"}


def test_lock_files_have_the_versions_of_the_constraints() -> None:
    constraints, locked = pins("constraints.txt"), pins(CPU_LOCK)
    assert {
        name: version for name, version in locked.items() if constraints.get(name) != version
    } == {}
    assert names(setup_argument("install_requires")) <= locked.keys()
    assert all(f"{name}==".startswith(CUDA) for name in pins(LOCK))


@pytest.mark.parametrize("name", [LOCK, CPU_LOCK])
def test_lock_files_have_a_hash_for_each_package_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert entries(text)
    assert all(" --hash=sha256:" in entry for entry in entries(text))
    assert (f"-r {CPU_LOCK}\n" in text) == (name == LOCK)


def test_libraries_of_cuda_are_apart() -> None:
    hashes = " \\\n    --hash=sha256:a\n"
    av, nccl = f"av==1{hashes}", f"nvidia-nccl==2 ; x == 'y'{hashes}"
    cpu, whole = split(f"{av}colorama==1 ; sys_platform == 'win32'{hashes}{nccl}")
    assert (entries(cpu), entries(whole)) == ([av], [nccl])
