"""Imports that must wait until they are needed, and names that must stay."""

import pydoc
import subprocess
import sys
from importlib import import_module

import pytest

import vatt
from vatt.data.loader import PRELOADED


@pytest.mark.parametrize(
    ("statement", "unloaded"),
    [
        ("import vatt", ("torch", "numpy", "av", "lightning", "wandb")),
        ("import vatt.cli", ("torch", "numpy", "av", "lightning", "wandb", "jsonargparse")),
        (
            "from vatt import VATT, Batch, preset",
            ("av", "lightning", "wandb", "torchaudio", "transformers", "huggingface_hub"),
        ),
        ("from vatt import FeatureExtractor", ("lightning", "wandb", "torchaudio", "pyarrow")),
        ("from vatt import read_clip, ShardSet", ("lightning", "wandb", "torchaudio")),
    ],
)
def test_import_leaves_heavy_packages_unloaded(statement: str, unloaded: tuple[str, ...]) -> None:
    assert loaded_by(statement, unloaded) == []


def test_help_answers_without_torch() -> None:
    statement = (
        "from vatt.cli import main\n"
        "try:\n    code = main(['--help'])\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        "assert not code"
    )
    assert loaded_by(statement, ("torch", "numpy", "av", "lightning", "jsonargparse")) == []


def test_our_models_in_transformers_name_the_extra_that_is_missing() -> None:
    code = "import sys; sys.modules['transformers'] = None; import vatt.hf"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last == 'ImportError: vatt.hf needs transformers: pip install "vatt[hf]"'


def loaded_by(statement: str, modules: tuple[str, ...]) -> list[str]:
    """Which of the modules a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint()\nprint(*sorted({set(modules)} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_public_names_resolve() -> None:
    for name in vatt.__all__:
        assert getattr(vatt, name).__name__ == name
    assert set(vatt.__all__) <= set(dir(vatt))
    with pytest.raises(AttributeError, match="no attribute 'VAT'|No vatt attribute VAT"):
        _ = vatt.VAT
    with pytest.raises(ImportError):
        from vatt import VAT  # noqa: F401


def test_help_of_the_package_begins_with_an_example_and_its_public_names() -> None:
    words = vatt.__doc__.replace("\n", " ").replace(",", " ").split()
    assert [name for name in vatt.__all__ if name not in words] == []
    named = vatt.__doc__.split("Features and search:")[1].split("`vatt --help`")[0]
    listed = [word.strip(",") for word in named.split() if not word.endswith(":")]
    titles = ["Models", "and", "their", "loss", "Settings", "of", "models", "Media", "shards"]
    assert [one for one in listed if one not in vatt.__all__ and one not in titles] == []
    shown = pydoc.plaintext.document(vatt, "vatt")
    assert shown.index("vatt.FeatureExtractor.from_pretrained") < shown.index("PACKAGE CONTENTS")
    assert not {"Any", "TYPE_CHECKING", "import_module", "lazy_loader"} & set(dir(vatt))


@pytest.mark.parametrize("room", ["config", "media", "preprocess", "shards", "features", "search"])
def test_rooms_with_a_face_show_its_names(room: str) -> None:
    face = import_module(f"vatt.{room}")
    assert face.__all__
    for name in face.__all__:
        assert getattr(face, name) is getattr(vatt, name)


@pytest.mark.slow
def test_old_class_paths_of_configurations_are_the_classes_of_today() -> None:
    code = (
        "import vatt.runs.moved as moved; moved.keep_old_class_paths()\n"
        "from importlib import import_module as load\n"
        "assert all(load(old) is load(new) for old, new in moved.MOVED.items())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_worker_processes_preload_a_module_that_exists() -> None:
    # a wrong name there is not an error, only slow
    assert import_module(PRELOADED).__name__ == PRELOADED
