"""`torch.hub` loads models by `hubconf.py` of a clone, without an installed vatt."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from installed_vatt import user_environment
from setup_file import setup_argument
from tiny_models import make_model

from vatt import VATT, FeatureExtractor, Tokenizer, UserError, save_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(make_model(), tmp_path / "model", Tokenizer.train(["a dog barks"], 20))
    return tmp_path / "model"


def load(entry: str, *arguments: object, **options: object) -> object:
    return torch.hub.load(str(ROOT), entry, *arguments, source="local", **options)


def test_entry_points_are_those_that_load_models_and_their_packages_are_required() -> None:
    specification = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    hubconf = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hubconf)
    listed = [name for name, value in vars(hubconf).items() if callable(value) and name[0] != "_"]
    assert listed == ["vatt", "feature_extractor", "preset"]
    required = "".join(setup_argument("install_requires")).replace("-", "_")
    assert [name for name in hubconf.dependencies if name not in required] == []


def test_entry_points_load_models(folder: Path) -> None:
    model = load("vatt", folder)
    assert type(model) is VATT
    assert not model.training
    extractor = load("feature_extractor", folder, device="cpu")
    assert isinstance(extractor, FeatureExtractor)
    assert extractor.encode_text("a dog barks").shape == (1, 12)
    assert load("preset", "tiny").config == model.config
    with pytest.raises(UserError, match="no preset 'tin'; there are"):
        load("preset", "tin")
    with pytest.raises(RuntimeError, match="Cannot find callable vat in hubconf"):
        load("vat", folder)


def test_a_clone_is_enough(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch\n"
        f"model = torch.hub.load({str(ROOT)!r}, 'vatt', {str(folder)!r}, source='local')\n"
        "import vatt\n"
        f"assert vatt.__file__ == {str(ROOT / 'vatt' / '__init__.py')!r}, vatt.__file__\n"
        "print(sorted(model.embed_text(torch.tensor([[2, 3]]))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=user_environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "['vt']"), done.stderr
