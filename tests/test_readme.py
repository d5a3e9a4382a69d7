"""What the README says about the repository is so."""

import re
import shutil
from pathlib import Path

import pytest

from vatt import VATT, Tokenizer, preset, probe, save_model
from vatt.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tree_names_every_file_of_both_packages() -> None:
    block = re.search(r"```\n(vatt/.*?)```", README, re.DOTALL)[1]
    listed: dict[str, list[str]] = {}
    for line in block.splitlines():
        if folder := re.match(r"(\w+)/", line):
            listed[folder[1]] = files = []
        elif file := re.match(r"[ *]+(\w+\.\w+) ", line):
            files.append(file[1])
    for package in ("vatt", "datamodules"):
        present = {path.name for path in (ROOT / package).glob("*.*")}
        assert set(listed[package]) == present - {"__init__.py", "py.typed"}
        assert len(listed[package]) == len(set(listed[package]))


def test_python_blocks_run(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((tiny_corpus / "train").glob("*.mp4"))
    with_sound = next(file for file in files if probe(file).has_audio)
    shutil.copy(with_sound, tmp_path / "kitchen.mp4")
    shutil.copy(files[-1], tmp_path / "garden.mp4")
    tokenizer = Tokenizer.train(["a red ring spins and a dog barks"], 20)
    save_model(VATT(preset("tiny")), tmp_path / "runs" / "demo" / "model", tokenizer)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    blocks = [block for block in blocks if "vatt.Index" not in block]  # needs features
    exec(blocks[0], names)
    assert names["cosines"].shape == (2, 2)
    assert names["sound"].shape == (1, 24)
    assert (tmp_path / "kitchen.npz").is_file()
    command = re.search(r"vatt (export runs/demo/model exported)", README)[1]
    chosen = ["--formats", "onnx", "--modalities", "video", "text"]  # what the block below takes
    assert main([*command.split(), *chosen]) == 0
    exec(blocks[1], names)
    assert names["video"].shape == names["audio"].shape == (1, 32)
    for block in blocks[2:]:
        exec(block, names)
    assert names["output"].embeddings["video_vt"].shape == (2, 12)
    scores = names["fx"].extract("kitchen.mp4", space="vt", modalities=["video"])["video_vt"][:1]
    ours = names["fx"].encode_text("a red ring spins") @ scores.T
    assert names["cosine"] == pytest.approx(ours.numpy(), abs=1e-4)
    assert names["logits"].shape == (2, 400)
    assert names["features"].shape == (1, 32)


def test_search_runs_as_written(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = README.split("### Search\n")[1]
    commands = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1].splitlines()
    files = sorted((tiny_corpus / "train").glob("*.mp4"))
    with_sound = next(file for file in files if probe(file).has_audio)
    (tmp_path / "my_videos").mkdir()
    for file in (*files[:3], with_sound):
        shutil.copy(file, tmp_path / "my_videos")
    shutil.copy(with_sound, tmp_path / "kitchen.mp4")
    shutil.copy(with_sound, tmp_path / "bark.wav")  # what it is counts, not what it is called
    tokenizer = Tokenizer.train(["a red ring spins and a dog barks"], 20)
    save_model(VATT(preset("tiny")), tmp_path / "runs" / "demo" / "model", tokenizer)
    monkeypatch.chdir(tmp_path)
    extract = next(line for line in README.splitlines() if "my_videos -o features" in line)
    for command in (extract, *commands):
        assert main(shlex.split(command, comments=True)[1:]) == 0, command
    assert (tmp_path / "found.html").is_file()
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], names)
    assert len(names["hits"]) == 5


def test_table_of_models_is_what_the_doctor_prints(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", "--model", "all"]) == 0
    assert capsys.readouterr().out in README
