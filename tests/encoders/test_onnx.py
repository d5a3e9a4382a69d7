"""Exported towers as a back end: the vectors of PyTorch, of what was exported, and one digest."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from tiny_models import ONE_LAYER

from vatt import FeatureExtractor, Index, probe
from vatt.cli import main
from vatt.errors import CheckpointError, UserError
from vatt.models.export import TOLERANCE


@pytest.fixture(scope="module")
def exported(exported_model: Path) -> Path:
    return exported_model / "tiny"


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Path:
    """Three clips with sound."""
    folder = tmp_path_factory.mktemp("media")
    clips = sorted((tiny_corpus / "train").glob("*.mp4"))
    for path in [clip for clip in clips if probe(clip).has_audio][:3]:
        shutil.copy(path, folder)
    return folder


def load(folder: Path, backend: str = "onnx") -> FeatureExtractor:
    return FeatureExtractor.from_pretrained(folder, backend=backend, device="cpu")


def test_vectors_are_those_of_torch(exported: Path, media: Path) -> None:
    ours, theirs = load(exported, "torch"), load(exported)
    assert theirs.encoder.modalities == ours.encoder.modalities == ("video", "audio", "text")
    paths = sorted(media.iterdir())
    compared = 0
    for modality in ("video", "audio", "text", "video_audio"):
        assert theirs.spaces(modality) == ours.spaces(modality)
        inputs = ["a red ring", "dog", "a dog spins"] if modality == "text" else paths
        features = () if modality == "video_audio" else (None,)
        for space in (*ours.spaces(modality), *features):
            ask = {"modality": modality, "space": space, "normalize": False, "batch_size": 2}
            wanted, got = (fx.encode(inputs, **ask) for fx in (ours, theirs))
            assert got.shape == wanted.shape
            assert (got - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
            assert (wanted[0] - wanted[1]).abs().max() > 10 * (got - wanted).abs().max()
            compared += 1
    assert compared == 3 + 3 + 2 + 2
    assert repr(theirs) == repr(ours)
    cosines = [fx.similarity(text="a red ring", video=paths) for fx in (ours, theirs)]
    torch.testing.assert_close(*cosines, atol=1e-5, rtol=0)


def test_only_what_was_exported_is_there(copy: Path, media: Path) -> None:
    (copy / "video.onnx").unlink()
    fx = load(copy)
    assert fx.encoder.modalities == ("audio", "text")
    assert fx.encoder.video is None
    assert fx.spaces("video") == fx.spaces("video_audio") == ()
    assert fx.encode_audio(next(media.iterdir()), space="vt").shape == (1, ONE_LAYER.head.d_vt)
    with pytest.raises(UserError, match="this model has audio and text, not video"):
        fx.encode_video(next(media.iterdir()))


def test_features_of_both_backends_are_the_same_to_a_folder_and_an_index(
    exported: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, index = tmp_path / "features", tmp_path / "index"
    arguments = ["extract", str(media), "-o", str(out), "--model", str(exported)]
    arguments += ["--device", "cpu", "--workers", "0"]
    assert main([*arguments, "--backend", "onnx"]) == 0
    assert main(arguments) == 0
    assert "0 made" in capsys.readouterr().out.splitlines()[-1]
    assert main(["index", str(out), "-o", str(index)]) == 0
    capsys.readouterr()
    scores = []
    for backend in ("onnx", "torch"):
        asked = ["search", str(index), "a red ring", "--json", "--device", "cpu"]
        assert main([*asked, "--backend", backend]) == 0
        hits = json.loads(capsys.readouterr().out)["hits"]
        scores.append([hit["score"] for hit in hits])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    found = Index(index, backend="onnx", device="cpu")
    assert type(found.extractor.model).__name__ == "OnnxTowers"


def test_the_digest_is_that_of_the_weights(exported: Path) -> None:
    assert load(exported).encoder.digest() == load(exported, "torch").encoder.digest()


def test_towers_alone_need_no_weights_of_torch(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "config.json").unlink()
    assert load(copy).encode_text("a dog").shape == (1, ONE_LAYER.head.d_vt)


def test_towers_of_another_model_are_refused(copy: Path) -> None:
    other = onnx.load(copy / "text.onnx")
    digest = next(entry for entry in other.metadata_props if entry.key == "vatt_sha256")
    digest.value = "0" * 64
    onnx.save(other, copy / "text.onnx")
    with pytest.raises(CheckpointError, match="text.onnx and .*video.onnx come from different"):
        load(copy)


def test_what_cannot_be_run_is_said_in_one_sentence(
    exported: Path, copy: Path, media: Path, tmp_path: Path
) -> None:
    fx, clip = load(exported), next(media.iterdir())
    with pytest.raises(UserError, match="take windows of the model's own length"):
        fx.extract(clip, window_seconds=2 * ONE_LAYER.video.duration_seconds, modalities="video")
    with pytest.raises(UserError, match="exported towers have no tokens of video"):
        fx.encode_video(clip, return_tokens=True, space=None)
    with pytest.raises(UserError, match="exported towers are float32, got dtype 'bfloat16'"):
        FeatureExtractor.from_pretrained(exported, backend="onnx", dtype="bfloat16")
    with pytest.raises(UserError, match="does not compute on mps: give device cpu"):
        FeatureExtractor.from_pretrained(exported, backend="onnx", device="mps")
    with pytest.raises(UserError, match="backend must be torch or onnx, got 'jax'"):
        load(exported, "jax")
    with pytest.raises(CheckpointError, match=r"holds no exported towers .* `vatt export MODEL"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="no model at .*absent"):
        load(tmp_path / "absent")
    whole = onnx.load(copy / "audio.onnx")
    del whole.metadata_props[:]
    onnx.save(whole, copy / "audio.onnx")
    with pytest.raises(CheckpointError, match="audio.onnx does not say which model it is of"):
        load(copy)
    (copy / "audio.onnx").write_bytes((exported / "audio.onnx").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="audio.onnx cannot be read by onnxruntime"):
        load(copy)


def test_a_missing_onnxruntime_is_named_with_its_extra(
    exported: Path, media: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from vatt.cli import main\n"
        f"command = ['extract', {str(media)!r}, '-o', {str(tmp_path)!r}, '--backend', 'onnx']\n"
        f"sys.exit(main([*command, '--model', {str(exported)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'the backend onnx needs onnxruntime: pip install "vatt[export]"' in done.stderr
