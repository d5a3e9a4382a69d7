"""Models on disk: they describe themselves, and nothing in a file is executed."""

import dataclasses
import json
import resource
import shutil
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_model

from vatt.config.presets import TINY, preset
from vatt.errors import CheckpointError
from vatt.models.checkpoint import find_tokenizer, load_model, read_config, save_model
from vatt.models.start_weights import load_weights
from vatt.models.training_facts import find_model
from vatt.network.model import VATT


def test_a_saved_model_comes_back_with_its_configuration_and_weights(tmp_path: Path) -> None:
    model = VATT(preset("tiny"))
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config
    assert not loaded.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


def test_a_run_folder_is_the_model_of_its_best_checkpoint_else_of_its_last(
    trained_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "a run")
    checkpoints = run / "checkpoints"
    last = load_model(checkpoints / "last.ckpt").state_dict()
    torch.testing.assert_close(load_model(run).state_dict(), last, rtol=0, atol=0)
    assert find_tokenizer(run) == run / "tokenizer.json"
    assert read_config(run) == read_config(checkpoints / "last.ckpt")
    assert find_model(run) == (checkpoints / "last.ckpt", run)
    (checkpoints / "previous.ckpt").rename(checkpoints / "best.ckpt")
    best = load_model(checkpoints / "best.ckpt").state_dict()
    assert any(not torch.equal(best[name], value) for name, value in last.items())
    torch.testing.assert_close(load_model(run).state_dict(), best, rtol=0, atol=0)
    shutil.rmtree(checkpoints)
    with pytest.raises(CheckpointError, match="has no checkpoints/last.ckpt yet: nothing is trai"):
        load_model(run)


def test_a_full_disk_is_named_and_leaves_the_old_model_whole(tmp_path: Path) -> None:
    save_model(VATT(preset("tiny")), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))  # as if the disk were full
        with pytest.raises(OSError, match="model.safetensors"):
            save_model(VATT(preset("tiny")), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_missing_weights_are_named(tmp_path: Path) -> None:
    save_model(VATT(preset("tiny")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoder"]["num_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks.*blocks.2"):
        load_model(tmp_path)


def test_other_sizes_than_the_configuration_says_are_refused(tmp_path: Path) -> None:
    save_model(VATT(preset("tiny")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoder"]["d_ff"] = 65
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not fit the model's configuration"):
        load_model(tmp_path)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


HOSTILE = [
    ({"encoder": {"num_layers": 10**6}}, "encoder.num_layers must be at most 256, got 1,000,000"),
    ({"encoder": {"d_model": 10**7}}, "describes a model of .* weights, but .* has only .* bytes"),
    ({"text": {"vocab_size": 10**7}}, "describes a model of 3,000,.* weights, but"),
    ({"text": {"relative_buckets": 10**9}}, "relative_buckets"),
    ({"encoder": {"num_layers": 20}}, "describes a model of"),
]


@pytest.mark.parametrize(("changes", "message"), HOSTILE)
def test_a_configuration_of_more_than_the_file_can_hold_is_refused_before_it_is_built(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_model(VATT(preset("tiny")), tmp_path)
    change_config(tmp_path, **changes)
    for read in (load_model, read_config):
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path)


def test_a_configuration_too_large_to_be_one_is_refused_without_being_read(tmp_path: Path) -> None:
    save_model(VATT(preset("tiny")), tmp_path)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte that takes no space
    with pytest.raises(CheckpointError, match=r"config.json is refused: .* at most 1,048,576"):
        load_model(tmp_path)


def test_a_checkpoint_that_unpacks_to_more_than_it_has_is_refused(tmp_path: Path) -> None:
    config = preset("tiny").to_dict()
    torch.save({"vatt_config": config, "state_dict": {}}, tmp_path / "bomb.ckpt")
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data/0", bytes(80_000_000))
    with pytest.raises(CheckpointError, match=r"bomb.ckpt is refused: .* 80,00\d,\d+ bytes"):
        load_model(tmp_path / "bomb.ckpt")


def test_views_of_one_number_are_not_a_model_of_billions(tmp_path: Path) -> None:
    config = dataclasses.replace(preset("tiny"), encoder=dataclasses.replace(TINY, d_ff=10**6))
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in VATT(config).state_dict().items()}
    weights = {f"network.{name}": torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    torch.save({"vatt_config": config.to_dict(), "state_dict": weights}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"describes a model of .* weights, but .*a.ckpt has"):
        load_model(tmp_path / "a.ckpt")


def test_a_loaded_model_owns_its_weights_and_computes_as_the_saved_one(tmp_path: Path) -> None:
    saved = make_model()
    saved.text_tokens.embedding.weight.requires_grad_(False)
    config = dataclasses.replace(
        saved.config, text=dataclasses.replace(saved.config.text, train_embedding=False)
    )
    saved.config = config
    save_model(saved, tmp_path)
    before = torch.get_rng_state()
    loaded = load_model(tmp_path)
    assert torch.get_rng_state().equal(before)  # nothing is drawn in vain
    weights = tmp_path / "model.safetensors"
    assert str(weights) not in Path("/proc/self/maps").read_text()
    weights.write_bytes(bytes(weights.stat().st_size))  # written over, not replaced
    words = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert loaded.encode_text(words).equal(saved.eval().encode_text(words))
    for name, value in loaded.state_dict().items():
        assert value.equal(saved.state_dict()[name])
        assert value.untyped_storage().nbytes() == value.nbytes
    learns = {name: one.requires_grad for name, one in saved.named_parameters()}
    assert {name: one.requires_grad for name, one in loaded.named_parameters()} == learns
    assert not learns["text_tokens.embedding.weight"]


def test_weights_in_half_precision_become_a_model_in_float32(tmp_path: Path) -> None:
    model = make_model()
    save_model(model.bfloat16(), tmp_path)
    loaded = load_model(tmp_path)
    for name, value in model.state_dict().items():
        assert loaded.state_dict()[name].equal(value.float())


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


def test_a_pickle_is_refused_without_being_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"vatt_config": Bomb(trace)}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="cannot be read|without running code from it"):
        load_model(tmp_path / "bad.ckpt")
    assert not trace.exists()


def test_damaged_and_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model at"):
        load_model(tmp_path / "absent")
    with pytest.raises(ValueError, match="config.json is missing"):
        load_model(tmp_path)
    save_model(VATT(preset("tiny")), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_model(tmp_path)
    trace = tmp_path / "trace"
    torch.save({"vatt_config": Bomb(trace)}, weights)  # a pickle in its place
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_model(tmp_path)
    assert not trace.exists()
    weights.unlink()
    with pytest.raises(ValueError, match=r"model.safetensors is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "content", [{"vatt_config": 5, "state_dict": {}}, {"vatt_config": {}}, {}, [1], "text"]
)
def test_a_file_of_another_kind_is_refused_in_a_sentence(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint of vatt"):
        load_model(tmp_path / "other.ckpt")


def test_a_text_in_place_of_a_checkpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.ckpt").write_text("hello\n" * 100)
    with pytest.raises(ValueError, match="give a .ckpt that `vatt fit` wrote") as refused:
        load_model(tmp_path / "notes.ckpt")
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("d_post", "32", r"config.d_post must be int, got '32'"),
        ("encoder", 5, r"config.encoder must be EncoderConfig, got 5"),
        ("encoder", {"d_model": 32.5}, r"config.encoder.d_model must be int, got 32.5"),
        ("drop_token", None, r"config.drop_token must be float, got None"),
        ("modalities", 5, r"config.modalities must be tuple, got 5"),
        ("video", {"patch_size": ["2", 8, 8]}, r"config.video.patch_size must be tuple, got"),
        ("head", "fac", r"config.head must be .*HeadConfig.*, got 'fac'"),
    ],
)
def test_a_configuration_with_values_of_other_types_is_refused(
    name: str, value: object, message: str, tmp_path: Path
) -> None:
    save_model(VATT(preset("tiny")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"encoder": dataclasses.replace(TINY, num_heads=4, d_kv=8)}, "encoder.num_heads"),
        ({"text": dataclasses.replace(preset("tiny").text, max_words=16)}, None),
        ({"drop_token": 0.0}, None),
    ],
)
def test_weights_are_taken_only_from_a_model_that_computes_the_same(
    changes: dict[str, Any], name: str | None, tmp_path: Path
) -> None:
    save_model(VATT(preset("tiny")), tmp_path)
    model = VATT(dataclasses.replace(preset("tiny"), **changes))
    if name is None:
        load_weights(model, tmp_path)
        return
    with pytest.raises(ValueError, match=f"holds another model: {name} is 2 there and 4 here"):
        load_weights(model, tmp_path)
