"""Loading of models of others: their kinds, the Hub, and what is refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer, hub_server
from tiny_models import make_model

from vatt import FeatureExtractor, load_model, save_model
from vatt.encoders.loading import load_encoder
from vatt.encoders.model_folder import kind_of, wanted_files, weight_bytes
from vatt.encoders.transformers_loading import load_transformers
from vatt.errors import CheckpointError, UserError
from vatt.system.device import free_device_memory
from vatt.system.machine import free_memory

TEXTS = ["a dog barks", "rain falls on a street"]


@pytest.fixture
def clip(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """Copy of a CLIP model, which a test may change."""
    return Path(shutil.copytree(saved("clip"), tmp_path / "clip"))


def vectors_of(source: str | Path, **options: Any) -> torch.Tensor:
    """Vectors of two texts."""
    return FeatureExtractor.from_pretrained(source, device="cpu", **options).encode_text(TEXTS)


def publish(server: HubServer, name: str, folder: Path) -> dict[str, bytes]:
    """Puts a folder on the server."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    server.repositories[name] = {"main": files}
    return files


def test_from_the_hub_come_only_the_files_that_are_needed(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = vectors_of(clip)
    digest = load_encoder(clip, device="cpu").digest()
    (clip / "onnx").mkdir()
    for name in ("pytorch_model.bin", "tf_model.h5", "README.md", "onnx/model.onnx", "code.py"):
        (clip / name).write_bytes(b"not read")
    with hub_server(monkeypatch, str(tmp_path / "cache")) as server:
        publish(server, "org/clip", clip)
        assert torch.equal(vectors_of("org/clip"), expected)
        assert load_encoder("org/clip", device="cpu").digest() == digest
        (snapshot,) = (tmp_path / "cache").glob("models--org--clip/snapshots/*")
        assert {path.name for path in snapshot.rglob("*")} == {
            *("config.json", "model.safetensors", "processor_config.json"),
            *("tokenizer.json", "tokenizer_config.json"),
        }
        with pytest.raises(CheckpointError, match="org/clip .* has no such revision"):
            vectors_of("org/clip", revision="none")
        with pytest.raises(CheckpointError, match="org/absent .* no model of that name is public"):
            vectors_of("org/absent")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert torch.equal(vectors_of("org/clip"), expected)
        with pytest.raises(CheckpointError, match="org/absent .* no connection .* no copy in the"):
            vectors_of("org/absent")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert torch.equal(vectors_of("org/clip"), expected)  # the server is gone


def test_a_sentence_transformer_and_a_vatt_come_from_the_hub_too(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(make_model(), tmp_path / "own")
    with hub_server(monkeypatch, str(tmp_path / "cache")) as server:
        publish(server, "org/words", saved("sentence_transformer"))
        publish(server, "org/own", tmp_path / "own")
        assert torch.equal(vectors_of("org/words"), vectors_of(saved("sentence_transformer")))
        assert "video + audio + text" in repr(FeatureExtractor.from_pretrained("org/own"))


def test_weights_are_fetched_once_and_pickles_only_where_there_is_nothing_else() -> None:
    files = [
        *("config.json", "vocab.txt", "model.safetensors", "pytorch_model.bin", "README.md"),
        *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin"),
        *("onnx/model.onnx", "onnx/config.json", "model.fp16.safetensors", "modeling.py"),
        *("3_Dense/model-00001-of-00002.safetensors", "3_Dense/model-00002-of-00002.safetensors"),
        *(
            "3_Dense/model.safetensors.index.json",
            "3_Dense/pytorch_model.bin",
            "flax_model.msgpack",
        ),
    ]
    wanted = wanted_files(files, with_code=False)
    assert {*wanted} == {
        *("config.json", "vocab.txt", "model.safetensors"),
        *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin"),
        *("3_Dense/model-00001-of-00002.safetensors", "3_Dense/model-00002-of-00002.safetensors"),
        "3_Dense/model.safetensors.index.json",
    }
    assert {*wanted_files(files, with_code=True)} - {*wanted} == {"modeling.py"}


def test_weights_in_half_precision_several_files_or_a_pickle_give_float32(clip: Path) -> None:
    transformers = load_transformers()
    expected = vectors_of(clip)
    model = transformers.CLIPModel.from_pretrained(clip)
    model.save_pretrained(clip, max_shard_size="60KB")
    assert len([*clip.glob("model-*-of-*.safetensors")]) > 1
    (clip / "model.safetensors").unlink()
    size = 4 * sum(weight.numel() for weight in model.parameters())
    assert weight_bytes(clip) == size
    assert torch.equal(vectors_of(clip), expected)
    for path in clip.glob("model*.safetensors*"):
        path.unlink()
    torch.save(model.state_dict(), clip / "pytorch_model.bin")
    assert torch.equal(vectors_of(clip), expected)
    (clip / "pytorch_model.bin").unlink()
    for dtype in (torch.bfloat16, torch.float16):
        model.to(dtype).save_pretrained(clip)
        assert weight_bytes(clip) == size
        halved = FeatureExtractor.from_pretrained(clip, device="cpu")
        assert {weight.dtype for weight in halved.model.parameters()} == {torch.float32}
        assert 0 < (halved.encode_text(TEXTS) - expected).abs().max() < 0.05


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_runs_no_code(clip: Path, tmp_path: Path) -> None:
    (clip / "model.safetensors").unlink()
    (clip / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=2))
    with pytest.raises(CheckpointError, match="pickled weights that hold more than weights"):
        load_encoder(clip)
    assert not (tmp_path / "ran").exists()


def test_code_of_a_model_runs_only_if_it_is_trusted(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved("sentence_transformer"), tmp_path / "own_code"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1]["type"] = "doubled.Doubled"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "doubled.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from sentence_transformers.base.modules import Normalize as Doubled\n"
    )
    wanted = r"wants to run Python code that comes with it: read .* trust_remote_code=True"
    with pytest.raises(CheckpointError, match=wanted):
        load_encoder(folder)
    assert not (tmp_path / "ran").exists()
    assert vectors_of(folder, trust_remote_code=True).shape == (2, 32)
    assert (tmp_path / "ran").exists()


def test_kinds_are_told_by_the_small_files(saved: Callable[[str], Path], tmp_path: Path) -> None:
    assert kind_of(saved("clap")) == "clap"
    assert kind_of(saved("siglip2")) == "siglip2"
    assert kind_of(saved("sentence_clip")) == "sentence-transformers"
    save_model(make_model(), tmp_path / "own")
    assert kind_of(tmp_path / "own") == "vatt"
    module = {"idx": 0, "name": "0", "path": "", "type": "vatt.sentence_transformers.VATTModule"}
    (tmp_path / "own" / "modules.json").write_text(json.dumps([module]))
    assert kind_of(tmp_path / "own") == "vatt"


def test_models_that_give_no_vectors_are_refused_by_their_kind(
    clip: Path, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    config = {"model_type": "llama", "auto_map": {"AutoModel": "code.Model"}}
    (clip / "config.json").write_text(json.dumps(config))
    message = "model of transformers with code of its own whose model_type 'llama' is not one of"
    with pytest.raises(CheckpointError, match=message):
        load_encoder(clip)
    folder = Path(shutil.copytree(saved("sentence_transformer"), tmp_path / "pairs"))
    settings = {"model_type": "CrossEncoder"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="is a CrossEncoder .* no vector of one input"):
        load_encoder(folder)
    (folder / "modules.json").write_text(json.dumps([{"type": "x", "path": "../clip"}]))
    settings = {"model_type": "SentenceTransformer"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="names the folder ../clip outside the model"):
        load_encoder(folder)


def test_where_a_vatt_is_needed_a_model_of_others_is_told_from_a_damaged_one(clip: Path) -> None:
    with pytest.raises(
        CheckpointError, match="is a clip of transformers, no VATT, which is needed"
    ):
        load_model(clip)


@pytest.mark.parametrize(
    "names",
    [
        ["processor_config.json"],
        ["tokenizer.json"],
        ["tokenizer.json", "tokenizer_config.json"],  # transformers loads a tokenizer without words
    ],
)
def test_a_model_without_its_processor_says_which_files_to_copy(
    names: list[str], clip: Path
) -> None:
    for name in names:
        (clip / name).unlink()
    with pytest.raises(CheckpointError, match="no processor of texts and pictures .* copy process"):
        load_encoder(clip)


def test_damaged_files_are_named(clip: Path) -> None:
    weights = (clip / "model.safetensors").read_bytes()
    (clip / "model.safetensors").write_bytes(weights[:-1000])
    with pytest.raises(CheckpointError, match="damaged or incomplete weights .* copy them anew"):
        load_encoder(clip)
    (clip / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="safetensors is not a whole safetensors file"):
        load_encoder(clip)
    (clip / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights: model.safetensors is missing"):
        load_encoder(clip)
    (clip / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json is not JSON"):
        load_encoder(clip)


def test_weights_of_another_model_are_not_filled_up_at_random(
    clip: Path, saved: Callable[[str], Path]
) -> None:
    shutil.copy(saved("siglip") / "model.safetensors", clip)
    with pytest.raises(CheckpointError, match="clip lacks .* weights of a CLIPModel, such as"):
        load_encoder(clip)
    shutil.copy(saved("clip") / "model.safetensors", clip)
    config = json.loads((clip / "config.json").read_text())
    config["projection_dim"] = 8
    (clip / "config.json").write_text(json.dumps(config))
    wrong = r"2 weights of another shape .* text_projection.weight, \[16, 32\] instead of \[8, 32\]"
    with pytest.raises(CheckpointError, match=wrong):
        load_encoder(clip)


def test_a_model_larger_than_the_memory_is_refused_before_its_weights_are_read(clip: Path) -> None:
    shape = [1 << 21, 1 << 20]  # 4 TiB as bfloat16, 8 TiB as float32
    header = {"weight": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 1 << 42]}}
    text = json.dumps(header).encode()
    (clip / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(UserError, match=r"clip has 8192.0 GiB of weights in float32, and cpu has"):
        load_encoder(clip, device="cpu")


def test_free_memory_is_within_the_limit_of_the_container(tmp_path: Path) -> None:
    own = free_device_memory(torch.device("cpu"))
    assert own is None or own > 1 << 20
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\nBuffers: 1 kB\n")
    assert free_memory(tmp_path / "none", meminfo) == 5000 * 1024
    assert free_memory(tmp_path / "none", tmp_path / "none") is None
    for name, text in {
        "memory.max": "3000000\n",
        "memory.current": "2500000\n",
        "memory.stat": "anon 100\ninactive_file 500000\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path, meminfo) == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path, meminfo) == 5000 * 1024


def test_a_modality_that_the_model_lacks_is_named(
    saved: Callable[[str], Path], video: Path
) -> None:
    extractor = FeatureExtractor.from_pretrained(saved("clip"), device="cpu")
    with pytest.raises(UserError, match="this model has video and text, not audio"):
        extractor.encode_audio(video)
    with pytest.raises(UserError, match="this model has video and text, not video with audio"):
        extractor.encode_video_audio(video)
    with pytest.raises(UserError, match="no space 'vt' for video, it has joint"):
        extractor.encode_video(video, space="vt")
