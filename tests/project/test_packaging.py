"""What users install: wheel and sdist, each in a fresh environment, used from an empty folder."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from installed_vatt import ROOT, copy_checkout, install, run
from setup_file import setup_argument

import vatt

EXTRAS = sorted(setup_argument("extras_require"))
CONFIGS = {f"vatt/config/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
CONTENTS = CONFIGS | {
    path.relative_to(ROOT).as_posix()
    for package in ("vatt", "datamodules")
    for path in (ROOT / package).glob("**/*.*")
    if "__pycache__" not in path.parts
}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the sdist, built from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("distributions")
    checkout, out = copy_checkout(folder / "checkout"), folder / "dist"
    for kind in ("wheel", "sdist"):
        build = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
        run(sys.executable, "-c", build, cwd=checkout)
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


@pytest.fixture(scope="module", params=["wheel", pytest.param("sdist", marks=pytest.mark.slow)])
def installed(
    request: pytest.FixtureRequest,
    distributions: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folder `bin` of an environment with the wheel or the sdist."""
    environment = tmp_path_factory.mktemp(request.param) / "environment"
    return install(environment, distributions[request.param])


def test_wheel_holds_both_packages_the_configs_and_nothing_else(
    distributions: dict[str, Path],
) -> None:
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        names = set(wheel.namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"vatt", "datamodules", f"vatt-{vatt.__version__}.dist-info"}
    assert names >= CONTENTS
    assert {"vatt/py.typed", "datamodules/py.typed"} <= CONTENTS
    assert CONFIGS
    licences = {name.split("licenses/")[-1] for name in names}
    assert {"LICENSE", "NOTICE"} <= licences


def test_wheel_says_what_it_is_and_where_it_runs(distributions: dict[str, Path]) -> None:
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
        metadata = message_from_bytes(wheel.read(name))
    assert metadata["Author"]
    assert metadata["Project-URL"] == "Paper, https://arxiv.org/abs/2104.11178"
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(metadata.get_all("Classifier")))
    assert pythons == ["3.11", "3.12", "3.13"]
    assert {"all", "dev", "gcs", "remote", "s3"} <= set(metadata.get_all("Provides-Extra"))


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_extra_can_be_installed_with_the_constraints(
    distributions: dict[str, Path], extra: str, tmp_path: Path
) -> None:
    """By pip, which finds torch here and asks an index for what is missing, without installing."""
    wanted = f"vatt[{extra}] @ {distributions['wheel'].as_uri()}"
    command = (sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-cache-dir")
    constraints = ("-c", str(ROOT / "constraints.txt"))
    done = subprocess.run([*command, *constraints, wanted], capture_output=True, text=True)
    if "Failed to establish a new connection" in done.stderr:
        pytest.skip("there is no package index")
    assert done.returncode == 0, done.stderr


def test_sdist_holds_files_where_the_checkout_has_a_link(distributions: dict[str, Path]) -> None:
    with tarfile.open(distributions["sdist"]) as sdist:
        members = {member.name.split("/", 1)[-1]: member for member in sdist}
    assert CONFIGS
    for name in CONFIGS:
        assert members[name].isfile()


@pytest.mark.slow
def test_installed_package_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    code = "import vatt, datamodules; print(vatt.__file__, datamodules.__file__, vatt.__version__)"
    library, data, version = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert Path(library).is_relative_to(installed.parent)
    assert Path(data).is_relative_to(installed.parent)
    assert version == vatt.__version__
    assert "fit" in run(installed / "vatt", "--help", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_editable_install_is_found_from_the_folder_above_the_clone(tmp_path: Path) -> None:
    clone = copy_checkout(tmp_path / "above" / "vatt")
    bin_folder = install(tmp_path / "environment", "--editable", clone)
    code = "import vatt; print(vatt.__file__, vatt.FeatureExtractor.__name__)"
    for folder in (clone.parent, clone, tmp_path):
        found, name = run(bin_folder / "python", "-c", code, cwd=folder).split()
        assert Path(found) == clone / "vatt" / "__init__.py"
        assert name == "FeatureExtractor"
