"""Import of transformers and its neighbours, and of models with them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from foreign_models import save_clip, skip_without

from vatt.encoders.transformers_loading import (
    load_pretrained,
    load_sentence_transformers,
    load_timm,
    load_transformers,
)
from vatt.errors import CheckpointError, UserError


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'need transformers: pip install "vatt\[hf\]"'):
        load_transformers()
    with pytest.raises(UserError, match=r'need transformers: pip install "vatt\[hf\]"'):
        load_sentence_transformers()


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_missing_packages_of_pe_av_name_the_extra_with_and_without_cuda(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r'pip install "vatt\[pe-av\]", or beside torch for CPU: '):
        load_timm()


def test_missing_sentence_transformers_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without("transformers")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r'need sentence-transformers: pip install "vatt\[hf\]"'):
        load_sentence_transformers()


def test_transformers_loads_beside_this_torch_and_says_nothing() -> None:
    """In a process of its own: the first import decides."""
    skip_without("transformers", "sentence_transformers")
    code = (
        "from vatt.encoders.transformers_loading import load_sentence_transformers as load\n"
        "load()\n"
        "import transformers\n"
        "transformers.CLIPModel, transformers.AutoProcessor\n"
        "transformers.logging.get_logger('transformers').warning('a warning')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_log_of_a_program_that_imported_transformers_before_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skip_without("transformers")
    logging = load_transformers().logging
    logging.set_verbosity_warning()
    load_transformers()
    assert logging.get_verbosity() == logging.WARNING
    logging.set_verbosity_error()


def test_torchvision_that_does_not_fit_torch_resizes_pictures() -> None:
    """In a process of its own, where the operations stop as those for CUDA do without it."""
    skip_without("torchvision")
    code = (
        "import torch\n"
        "def load_library(path): raise OSError('libcudart.so.13')\n"
        "torch.ops.load_library = load_library\n"
        "from vatt.encoders.torchvision_loading import load_torchvision\n"
        "assert not load_torchvision().extension._has_ops()\n"
        "from torchvision.transforms.v2 import functional\n"
        "print(*functional.resize(torch.zeros(3, 6, 8, dtype=torch.uint8), [4, 4]).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "3 4 4\n"), done.stderr


def test_pretrained_model_has_float32_weights_of_its_folder(tmp_path: Path) -> None:
    skip_without("transformers")
    save_clip(tmp_path / "clip")
    transformers = load_transformers()
    half = load_pretrained(transformers.CLIPModel, str(tmp_path / "clip")).bfloat16()
    half.save_pretrained(tmp_path / "half")
    model = load_pretrained(transformers.AutoModel, str(tmp_path / "half"))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not model.training
    torch.testing.assert_close(model.logit_scale, half.logit_scale.float())


def test_pretrained_model_without_all_of_its_weights_is_refused(tmp_path: Path) -> None:
    skip_without("transformers")
    transformers = load_transformers()
    folder = save_clip(tmp_path / "clip")
    model = transformers.CLIPModel.from_pretrained(folder)
    weights = model.state_dict()
    del weights["text_projection.weight"]
    model.save_pretrained(folder, state_dict=weights)
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of a CLIPModel, such as text_pr"):
        load_pretrained(transformers.CLIPModel, str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot be loaded: Error no file named model.safe"):
        load_pretrained(transformers.CLIPModel, str(folder))
