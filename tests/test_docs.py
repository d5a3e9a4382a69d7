"""Every block of docs/ runs as it stands, in the order of the page."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from media_files import KINDS, make_file, make_still

from vatt import VATT, Tokenizer, preset, save_model
from vatt.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def workplace(tmp_path: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files and the model of which the pages speak."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a dog barks while someone chops onions"], 20)
    save_model(VATT(preset("tiny")), tmp_path / "runs" / "demo" / "model", tokenizer)
    make_file(tmp_path / "kitchen.mp4", KINDS["plain.mp4"])
    make_file(tmp_path / "garden.mp4", KINDS["silent.mp4"])
    sound = replace(KINDS["sound.m4a"], audio="pcm_s16le")
    make_file(tmp_path / "bark.wav", sound)
    make_still(tmp_path / "photo.png", "png")
    (tmp_path / "my_videos" / "talks").mkdir(parents=True)
    for path in sorted((tiny_corpus / "train").glob("*.mp4"))[:2]:
        shutil.copy(path, tmp_path / "my_videos")
    shutil.copy(tmp_path / "kitchen.mp4", tmp_path / "my_videos")
    (tmp_path / "my_videos" / "talks" / "broken.mp4").write_bytes(b"no media" * 100)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_command(line: str) -> None:
    """A line of a shell block; of `torchrun`, what it starts."""
    words = shlex.split(line)
    if words[0] == "torchrun":
        words = words[words.index("--no-python") + 1 :]
    assert words[0] == "vatt", f"the page has a command that no test runs: {line}"
    assert main(words[1:]) == 0, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, workplace: Path) -> None:
    names: dict[str, object] = {}
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert len(blocks) > 5
    for language, block in blocks:
        if language == "bash":
            for line in block.replace("\\\n", " ").strip().splitlines():
                run_command(line)
        else:
            assert language == "python", f"a block of {page.name} in {language!r} is not run"
            exec(compile(block, f"{page.name}: {block.splitlines()[0]}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_a_page_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", re.sub(BLOCK, "", text), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}
    for link in re.findall(r"\]\(#([^)]*)\)", text):
        assert link in anchors, link
