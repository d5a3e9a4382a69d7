"""The pages of docs/ and the README: blocks run as they stand, and what they name exists."""

import re
import shlex
import shutil
import tomllib
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import save_clap, save_clip, skip_without
from hub_server import hub_server
from media_files import KINDS, make_file, make_still

import vatt
from vatt import VATT, Tokenizer, preset, save_model
from vatt.cli import main
from vatt.config.checks import MAX_SIZE
from vatt.config.geometry import MAX_TOKENS
from vatt.config.model import MAX_LAYERS
from vatt.errors import UserError
from vatt.media.decoder import MAX_SIDE_PIXELS
from vatt.media.opening import MAX_FRAME_PIXELS
from vatt.media.pictures import MAX_CLIP_PIXELS
from vatt.media.png_bomb import MAX_METADATA_BYTES
from vatt.media.reader_process import LIMIT_SECONDS, MEMORY_BYTES
from vatt.preprocess.tokenizer import MAX_FILE_BYTES
from vatt.shards.record import MAX_TEXT_BYTES
from vatt.system.bounds import MOST_TIMES, SMALL_BYTES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
NOT_HERE = ("/config.yaml", "train.csv", "init_from MODEL")  # files that a command reads at once
FEATURES = (
    "Vectors of videos, sounds and texts",
    "What can be compared with what",
    "Arrays and tensors",
    "Files that cannot be read",
    "Windows with times",
    "Many files",
    "Search",
    "Export: ONNX and torch.export",
    "Publish a model",
)
COMMANDS = [
    (page.name, command)
    for page in PAGES
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8"))
    if language == "bash"
    for line in block.replace("\\\n", " ").splitlines()
    if (command := shlex.split(line, comments=True))
]


@pytest.fixture
def workplace(tmp_path: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files and the model that the pages name."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a dog barks while someone chops onions", "a red ring spins"], 20)
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


def arguments_of(command: list[str]) -> list[str] | None:
    """Arguments of `vatt` in a command of a page, also where something else starts it."""
    if command[0] == "torchrun":
        command = command[command.index("--no-python") + 1 :]
    if command[0] == "sbatch":
        script = command.index("scripts/slurm_pretrain.sh")
        command = ["vatt", "fit", *command[script + 1 :]]
    return command[1:] if command[0] == "vatt" else None


def run_blocks(text: str, names: dict[str, Any]) -> int:
    """Runs all blocks of a text, in order; their number."""
    blocks = BLOCK.findall(text)
    for language, block in blocks:
        if language == "bash":
            for line in block.replace("\\\n", " ").strip().splitlines():
                arguments = arguments_of(shlex.split(line, comments=True))
                assert arguments is not None, f"there is a command that no test runs: {line}"
                assert main(arguments) == 0, line
        else:
            assert language == "python", f"a block in {language!r} is not run"
            exec(compile(block, block.splitlines()[0], "exec"), names)
    return len(blocks)


def run_features(*headings: str) -> dict[str, Any]:
    """Runs sections of the page on features; the names that their blocks define."""
    names: dict[str, Any] = {"vatt": vatt, "Path": Path}
    for heading in ("A model", *headings):
        assert run_blocks(section("docs/features.md", heading), names) >= 1
    return names


def test_the_blocks_on_vectors_run(workplace: Path) -> None:
    names = run_features(*FEATURES[:5])
    assert names["readable"].tolist() == [True, False]


@pytest.mark.slow
def test_the_blocks_on_many_files_and_search_run(workplace: Path) -> None:
    names = run_features("Many files", "Search")
    assert len(names["hits"]) == 5
    assert (workplace / "found.html").is_file()


@pytest.mark.slow
def test_the_blocks_on_exported_models_run(workplace: Path) -> None:
    names = run_features("Export: ONNX and torch.export", "Publish a model")
    same = names["fx"].extract("kitchen.mp4", space="vt", modalities=["video"])["video_vt"][:1]
    ours = names["fx"].encode_text("a red ring spins") @ same.T
    assert names["cosine"] == pytest.approx(ours.numpy(), abs=1e-4)
    assert "license: apache-2.0" in names["card"]


def test_the_blocks_on_the_hub_and_torch_hub_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = "docs/models-in-other-tools.md"
    names: dict[str, Any] = {}
    with hub_server(monkeypatch, str(workplace / "cache")) as hub:
        assert run_blocks(section(page, "The Hugging Face Hub"), names) == 2
        assert sorted(hub.repositories) == ["org/demo", "org/name"]
        assert hub.repositories["org/name"]["main"].keys() == files_of(workplace / "published")
    (workplace / "vatt").symlink_to(ROOT)
    assert run_blocks(section(page, "torch.hub"), names) == 1
    assert names["vectors"].shape == (1, 12)


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_the_blocks_on_models_of_others_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without("transformers", "PIL")
    page, names = "docs/models-of-others.md", {}
    with hub_server(monkeypatch, str(workplace / "cache")) as hub:
        for name, save in (
            ("openai/clip-vit-base-patch32", save_clip),
            ("laion/clap-htsat-unfused", save_clap),
        ):
            files = [*save(workplace / "saved" / name).iterdir()]
            hub.repositories[name] = {"main": {file.name: file.read_bytes() for file in files}}
        assert run_blocks(section(page, "In Python"), names) == 1
        commands = section(page, "From the shell").split("vatt evaluate")[0] + "```\n"
        assert run_blocks(commands, names) == 1
    assert names["videos"].shape == (3, 16)
    assert names["features"]["audio_joint"].shape == (3, 16)


@pytest.mark.slow
def test_the_block_on_transformers_runs(workplace: Path) -> None:
    skip_without("transformers")
    names: dict[str, Any] = {}
    assert run_blocks(section("docs/models-in-other-tools.md", "transformers"), names) == 1
    assert names["cosine"].shape == (1,)


@pytest.mark.slow
def test_the_blocks_on_sentence_transformers_run(workplace: Path) -> None:
    skip_without("sentence_transformers")
    names: dict[str, Any] = {}
    blocks = section("docs/models-in-other-tools.md", "sentence-transformers")
    assert run_blocks(blocks, names) == 2
    assert names["cosines"].shape == (2, 3)
    assert names["both"].shape == names["vectors"].shape == (1, 12)


def test_no_section_of_the_page_on_features_is_left_out() -> None:
    page = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == ["A model", *FEATURES]


def test_the_readme_exports_as_the_page_on_features_does() -> None:
    features = [command for page, command in COMMANDS if page == "features.md"]
    block = section("README.md", "Evaluate and export").split("```")[1].removeprefix("bash")
    exports = [line for line in block.splitlines() if line.startswith("vatt export")]
    assert len(exports) == 1
    assert shlex.split(exports[0], comments=True) in features


def test_the_block_on_python_in_the_readme_runs(workplace: Path) -> None:
    names: dict[str, Any] = {}
    assert run_blocks(section("README.md", "Use it from Python"), names) == 1
    assert names["cosines"].shape == (2, 2)
    assert names["sound"].shape == (1, 24)
    assert (workplace / "kitchen.npz").is_file()


def test_the_blocks_on_the_network_run(workplace: Path) -> None:
    names: dict[str, Any] = {}
    assert run_blocks(section("docs/architecture.md", "The network by itself"), names) == 2
    assert names["video"].shape == names["audio"].shape == (1, 32)
    assert names["output"].embeddings["video_vt"].shape == (2, 12)
    assert names["logits"].shape == (2, 400)
    assert names["features"].shape == (1, 32)


def section(page: str, heading: str) -> str:
    """Text of a page under a heading, up to the next one of its kind."""
    text = (ROOT / page).read_text(encoding="utf-8") + "\n## "
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(
    ("page", "arguments"),
    [
        pytest.param(page, arguments, id=f"{page} {' '.join(arguments)[:40]}")
        for page, command in COMMANDS
        if (arguments := arguments_of(command)) and arguments[0] == "fit"
        if not any(file in " ".join(arguments) for file in NOT_HERE)
    ],
)
def test_training_commands_are_understood(
    page: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--print_config"]) == 0
    assert "seed_everything" in capsys.readouterr().out


def test_the_pages_name_commands_and_scripts_that_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    listed = set(re.findall(r"^  (\w+)  ", capsys.readouterr().out, re.MULTILINE))
    asked = [arguments_of(command) for _, command in COMMANDS]
    assert {arguments[0] for arguments in asked if arguments} <= listed
    for page in PAGES:
        for script in re.findall(r"(?:scripts|\.ci)/[\w./]*\w", page.read_text(encoding="utf-8")):
            assert (ROOT / script).is_file(), f"{page.name}: {script}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]*)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.is_file(), target
        assert not anchor or anchor in anchors_of(other), target


def anchors_of(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_code_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w/.-])((?:vatt|datamodules)(?:\.[A-Za-z_]\w*)+)", text))
    assert [name for name in sorted(names) if not exists(name)] == []


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    value: Any = import_module(parts[0])
    for depth, part in enumerate(parts[1:], 2):
        if not hasattr(value, part):
            module = ".".join(parts[:depth])
            if module == name and find_spec(module) is not None:
                return True  # not imported: it may need an extra
            try:
                import_module(module)
            except ImportError:
                return False
            except UserError:  # its extra is not installed; with it, all names are looked up
                return find_spec(module) is not None
        value = getattr(value, part)
    return True


def test_the_picture_of_the_floors_is_the_contract_of_the_imports() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(one["layers"] for one in contracts["contracts"] if one["type"] == "layers")
    floors = [floor.replace("vatt.", "").split(" | ") for floor in layers]
    text = section("docs/architecture.md", "The rooms on their floors")
    assert [floor.split(" · ") for floor in re.findall(r'f\d+\["(.*?)"\]', text)] == floors


def test_nothing_that_security_excludes_runs_code_of_a_file() -> None:
    unsafe = (
        r"pickle\.loads?\(|Unpickler\(|allow_pickle=True|weights_only=False|joblib|unsafe_load"
        r"|yaml\.load\(|trust_remote_code: bool = True|(?<![\w.])(?:eval|exec)\("
    )
    found = {
        path.name: re.findall(unsafe, path.read_text(encoding="utf-8"))
        for room in ("vatt", "datamodules")
        for path in (ROOT / room).rglob("*.py")
    }
    assert {name: matches for name, matches in found.items() if matches} == {}


def test_the_limits_in_security_are_those_of_the_code() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for limit in (
        f"{MAX_LAYERS:,} layers, {MAX_TOKENS:,} tokens per clip",
        f"widths of {MAX_SIZE / 1e6:.1f} million",
        f"at most {MAX_FILE_BYTES >> 20} MiB; runs only",
        f"at most {MAX_TEXT_BYTES >> 20} MiB of captions per sample",
        f"more than {MOST_TIMES} times their size (and more than {SMALL_BYTES >> 20} MiB)",
        f"at most {MAX_SIDE_PIXELS:,} pixels per side and {MAX_FRAME_PIXELS / 1e6:.0f} million",
        f"a clip {MAX_CLIP_PIXELS / 1e6:,.0f} million",
        f"unpack to at most {MAX_METADATA_BYTES >> 20} MiB",
        f"at most {MEMORY_BYTES >> 30} GiB",
        f"no sign of life for {LIMIT_SECONDS:.0f} s",
    ):
        assert limit in " ".join(page.split())


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for pattern in ("vatt/**/*.py", "scripts/*.sh")
        for path in ROOT.glob(pattern)
    )
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) >= 7
    assert [message for message in messages if message not in code] == []
