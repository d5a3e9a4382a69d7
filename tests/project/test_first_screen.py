"""The first commands of the README, with a small saved model in place of the one on the Hub."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from foreign_models import save_clap, save_clip, skip_without
from media_files import KINDS, make_file

from vatt.cli import main

skip_without("transformers")
README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
BLOCK = re.search(r"```bash\n(.*?)```", README, re.DOTALL)[1]
SAVE = {"openai/clip-vit-base-patch32": save_clip, "laion/clap-htsat-unfused": save_clap}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("kitchen.mp4", "garden.mp4"):
        (tmp_path / "my_videos").mkdir(exist_ok=True)
        make_file(tmp_path / "my_videos" / name, KINDS["plain.mp4"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_block(block: str) -> None:
    for line in block.splitlines():
        command = shlex.split(line, comments=True)
        if command[0] == "vatt":
            assert main(command[1:]) == 0


def test_first_block_searches_a_folder_by_words(workplace, capsys) -> None:
    model = re.search(r"--model (\S+)", BLOCK)[1]
    SAVE[model](workplace / model)
    assert len(BLOCK.splitlines()) <= 10
    run_block(BLOCK)
    hits = re.findall(r"^[12] .* (kitchen|garden)\.mp4$", capsys.readouterr().out, re.MULTILINE)
    assert {*hits} == {"kitchen", "garden"}
    assert (workplace / "found.html").stat().st_size > 1_000


def test_model_of_sounds_that_the_text_names_takes_its_place(workplace, capsys) -> None:
    model = "laion/clap-htsat-unfused"
    assert f"For words about sounds take `{model}`" in README
    SAVE[model](workplace / model)
    run_block(re.sub(r"--model \S+", f"--model {model}", BLOCK))
    assert "text → audio_joint" in capsys.readouterr().out
    shutil.rmtree(workplace / "features")
