"""Models on disk: they describe themselves, and nothing in a file is executed."""

import json
import resource
import signal
from pathlib import Path

import pytest
import torch

from vatt.checkpoint import load_model, save_model
from vatt.model import VATT
from vatt.presets import preset


def test_a_saved_model_comes_back_with_its_configuration_and_weights(tmp_path: Path) -> None:
    model = VATT(preset("tiny"))
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config
    assert not loaded.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


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
    with pytest.raises(ValueError, match="does not fit its own configuration"):
        load_model(tmp_path)


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


def test_a_pickle_is_refused_without_being_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"vatt_config": Bomb(trace)}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint that can be read safely"):
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
