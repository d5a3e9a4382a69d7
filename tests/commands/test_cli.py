"""The command line: what it answers, and what it says when something is wrong."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import vatt
from vatt.cli import _explain, main
from vatt.commands.arguments import run
from vatt.config.shipped import find_config, shipped_configs, with_config_paths
from vatt.errors import UserError
from vatt.preprocess.tokenizer import Tokenizer
from vatt.runs.explain import explain


def test_help_lists_every_command_and_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("demo", "fit", "validate", "shards", "tokenizer", "doctor", *shipped_configs()):
        assert word in text


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vatt {vatt.__version__}\n"


def test_no_command_is_an_error_and_an_unknown_one_is_guessed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    assert main(["fti"]) == 2
    assert "no command 'fti'. Did you mean fit?" in capsys.readouterr().err


def fit(shards: Path, tmp_path: Path, *more: str) -> list[str]:
    train = f"--data.init_args.train=[{shards / 'train'}]"
    return ["fit", "--config=tiny", train, f"--run.dir={tmp_path / 'run'}", *more]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.max_stepz=3", "trainer.max_stepz. Did you mean trainer.max_steps?"),
        ("--max_steps=3", "max_steps. Did you mean trainer.max_steps?"),
        ("--trainer.max_step=3", "trainer.max_step. Did you mean trainer.max_steps?"),
        (
            "--model.init_args.model.video.num_framez=8",
            "num_framez. Did you mean model.init_args.model.video.num_frames?",
        ),
        (
            "--data.init_args.batchsize=8",
            "data.init_args.batchsize. Did you mean data.init_args.batch_size?",
        ),
        ("--data.init_args.batch_size=many", "batch_size must be of type int, got 'many'"),
        (
            "--model.init_args.schedule.kind=cosine",
            "schedule.kind must be one of 'half_cosine', 'quarter_cosine', 'constant_then_linear'",
        ),
        ("--model.init_args.model.video.num_frames=7", "video.num_frames (7) must be a multiple"),
        ("--data.init_args.video.num_frames=8", "is taken from model.init_args.model.video"),
        ("--model.init_args.schedule.max_steps=8", "is taken from trainer.max_steps"),
        ("--data.class_path=datamodules.Nothing", "Nothing"),
        ("--ckpt_path=nowhere.ckpt", "no checkpoint nowhere.ckpt"),
        ("--model.init_args.micro_batch_size=3", "must divide them, got 3"),
        ("--data.init_args.micro_batch_size=3", "is taken from model.init_args.micro_batch_size"),
        ("--run.checkpoint_every_n_steps=0", "must be at least 1"),
        ("--run.time_budget_seconds=-3", "must be positive"),
        ("--seed_everything=-5", "seed_everything must be from 0 to 2^32 - 1, got -5"),
        ("--data.init_args.train=one", "data.train: there is no folder one: correct the path"),
        ("--data.init_args.train=[3]", "data.init_args.train must be of type str, got"),
        ("--trainer.gradient_clip_val=much", "must be one of int, float, null, got 'much'"),
        ("--trainer.devices=many", "`devices` selected with `CPUAccelerator`"),
        ("--trainer.val_check_interval=0.001", "val_check_interval"),
    ],
)
def test_wrong_setting_gets_one_sentence_that_names_it(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    assert main(fit(tiny_shards, tmp_path, option)) in (1, 2)
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trainer: {max_stepz: 3}", "trainer.max_stepz. Did you mean trainer.max_steps?"),
        (
            "model: {init_args: {model: {audio: {sample_ratee: 3}}}}",
            "model.init_args.model.audio.sample_ratee. "
            "Did you mean model.init_args.model.audio.sample_rate?",
        ),
        ("dota: {class_path: 3}", "unknown key dota"),
        (
            "data: {init_args: {video: {num_frames: 3}}}",
            "is taken from model.init_args.model.video",
        ),
        ("trainer: {max_steps: [3", "line 1, column"),
    ],
)
def test_wrong_configuration_file_gets_one_sentence(
    tiny_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    message: str,
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(content)
    assert main(fit(tiny_shards, tmp_path, f"--config={overlay}")) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_missing_and_empty_shard_folders_are_named_and_leave_nothing(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offline = "--run.wandb=offline"
    for folder in (tmp_path / "missing", tmp_path / "empty"):
        assert main(fit(folder, tmp_path, offline)) in (1, 2)
        assert str(folder / "train") in capsys.readouterr().err
        (tmp_path / "empty" / "train").mkdir(parents=True, exist_ok=True)
    validation = f"--data.init_args.validation={tmp_path / 'nothing'}"
    assert main(fit(tiny_shards, tmp_path, offline, validation)) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_validate_without_weights_is_refused(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = f"--data.init_args.train=[{tiny_shards / 'train'}]"
    assert main(["validate", "--config=tiny", train]) == 2
    assert "give --ckpt_path" in capsys.readouterr().err
    assert main(["fit", "--config=tiny", train, "--ckpt_path=last"]) == 2
    assert "needs --out (--run.dir)" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_one_sentence(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit(tiny_shards, tmp_path, "--trainer.accelerator=gpu")) == 1
    message = capsys.readouterr().err
    assert "torch finds none here" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_devices_that_are_not_there_are_one_sentence() -> None:
    lightnings = "You requested gpu: [0, 1, 2]\n But your machine only has: [0]"
    assert explain(lightnings) == (
        "trainer.devices: You requested gpu: [0, 1, 2] But your machine only has: [0]"
    )


def test_config_names_become_paths_wherever_they_stand() -> None:
    path = str(shipped_configs()["tiny"])
    assert with_config_paths(["fit", "-c", "tiny"]) == ["fit", "-c", path]
    assert with_config_paths(["--config=tiny", "--x"]) == [f"--config={path}", "--x"]
    assert find_config(path) == Path(path)
    with pytest.raises(UserError, match="no configuration 'tinyy'.* Did you mean tiny?"):
        find_config("tinyy")


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_is_parsed_and_short(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(shipped_configs()[name].read_text().splitlines()) <= 60
    text = shipped_configs()[name].read_text()
    tunes = "class_path: vatt.training.finetune" in text
    opens = "class_path: vatt.training.open_model" in text
    whole = tunes or opens or "class_path: vatt.training.pretrain" in text
    configs = ["--config", name] if whole else ["--config", "demo", "--config", name]
    train = f"--data.init_args.train={'x' if tunes else '[x]'}"
    more = ["--model.init_args.model.classifier.num_classes=3"] if tunes else []
    assert main(["fit", *configs, train, *more, "--print_config"]) == 0
    kind = "training.finetune.FinetuneModule" if tunes else "training.pretrain.PretrainModule"
    kind = "training.open_model.OpenModelModule" if opens else kind
    assert f"class_path: vatt.{kind}" in capsys.readouterr().out


def test_shards_are_built_and_checked(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media, out = tmp_path / "media", tmp_path / "shards"
    media.mkdir()
    for source in sorted((tiny_corpus / "train").glob("*.mp4"))[:3]:
        shutil.copy(source, media)
    (media / "captions.jsonl").write_text(
        json.dumps(
            {
                "file": "000000.mp4",
                "segments": [{"start_seconds": 0, "end_seconds": 1, "text": "a red star"}],
            }
        )
        + "\n"
    )
    assert main(["shards", "build", str(media), str(out), "--samples-per-shard", "2"]) == 0
    assert sorted(path.name for path in out.glob("*.tar")) == ["00000.tar", "00001.tar"]
    table = tmp_path / "table.csv"
    assert main(["shards", "check", str(out), "--workers", "0", "--csv", str(table)]) == 0
    assert len(table.read_text().splitlines()) == 4
    assert main(["tokenizer", str(out), str(tmp_path / "tokenizer.json")]) == 0
    assert Tokenizer.load(tmp_path / "tokenizer.json").vocab_size == 5  # padding, unknown, 3 words
    pieces = ["tokenizer", str(out), "--kind", "bpe", "--vocab-size", "260"]
    assert main([*pieces, str(tmp_path / "bpe.json")]) == 0
    assert 258 <= Tokenizer.load(tmp_path / "bpe.json").vocab_size <= 260
    pieces[-1] = "257"
    assert main([*pieces, str(tmp_path / "small.json")]) == 1
    assert "at least 258, got 257" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["shards", "check", str(tmp_path / "nowhere")]) == 1
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_wrong_arguments_of_a_small_command_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "build", "a", "b", "--samples-per-shard", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err
    assert main(["shards", "check", "a", "--workers=-1"]) == 2
    assert "must be at least 0, got -1" in capsys.readouterr().err


def test_doctor_finds_what_training_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "libx264 encoder  ok" in text
    assert "everything that training needs is installed" in text


def test_doctor_says_which_extras_are_there_and_how_to_get_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vatt-9.dist-info").mkdir()
    (tmp_path / "vatt-9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: vatt\nVersion: 9\nRequires-Dist: torch>=2.11\n"
        'Requires-Dist: pytest>=8.0; extra == "one"\n'
        'Requires-Dist: pytest>=8.0; extra == "two"\n'
        'Requires-Dist: no-such-package; extra == "two"\n'
        'Requires-Dist: nor-this; extra == "dev"\n'
        'Requires-Dist: vatt[one]; extra == "one-more"\n'
        'Requires-Dist: pytest>=8.0; extra == "one-more"\n'
        'Requires-Dist: vatt[one,two]; extra == "all"\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"  one       pytest {pytest.__version__}\n" in text
    assert f"  one-more  pytest {pytest.__version__}\n" in text
    assert '  two       pip install "vatt[two]" for no-such-package\n' in text
    assert "nor-this" not in text
    assert "all" not in re.findall(r"^  (\w+) ", text, re.MULTILINE)


def test_doctor_names_what_does_not_load_and_how_to_get_it() -> None:
    names = ("torch", "torchaudio", "av", "lightning", "wandb")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({names}))\n"
        "from vatt.cli import main; sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    for name in ("torch", "av", "lightning"):
        assert f"{name} does not load" in done.stdout
        assert f"pip install {name}" in done.stdout.splitlines()[-1]


def test_a_reader_that_leaves_early_is_no_error() -> None:
    # unbuffered: the first line is written when nobody reads any more
    command = [sys.executable, "-u", "-m", "vatt.cli", "doctor"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_errors_of_the_world_become_sentences_and_bugs_do_not() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/last.ckpt")
    assert _explain(full) == (
        "No space left on the disk for run/last.ckpt: free some, then run the same command again",
        1,
    )
    assert _explain(KeyboardInterrupt()) == ("Stopped.", 130)
    assert _explain(UserError("do this", 2)) == ("do this", 2)
    absent = FileNotFoundError(2, "No such file", "x")
    assert _explain(absent)[0] == "x: No such file: check this path"
    for bug in (ValueError("x must be 1"), OSError("pipe broke"), TypeError("a bug")):
        assert _explain(bug)[0] is None


def test_command_of_the_shell_ends_with_its_exit_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vatt.cli", "nonsense"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_overlay_without_a_configuration_to_lie_on_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {init_args: {model: {drop_token: 0.5}}}")
    assert main(["fit", f"--config={overlay}"]) == 2
    assert "give a whole configuration before" in capsys.readouterr().err


def test_options_file_gives_options_and_the_command_line_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple] = []

    def command(
        source: Path, *, size: int = 3, names: tuple[str, ...] = (), exact: bool = False
    ) -> int:
        """Shows what it is given.

        Args:
            source: A place.
            size: Pixels.
            names: Some words.
            exact: Whether to the digit.
        """
        seen.append((source, size, names, exact))
        return 0

    options = tmp_path / "options.yaml"
    options.write_text("size: 4\nnames: [a, b]\nexact: true\n")
    for more in ([], ["--size=5", "--no-exact"]):
        assert run("vatt x", command, [f"--options={options}", "here", *more]) == 0
    assert seen == [(Path("here"), 4, ("a", "b"), True), (Path("here"), 5, ("a", "b"), False)]
    options.write_text("siz: 4")
    with pytest.raises(UserError, match=r"`vatt x` has no option siz. Did you mean size\?"):
        run("vatt x", command, ["here", "--options", str(options)])
    with pytest.raises(SystemExit):
        run("vatt x", command, ["--help"])
    assert "--size N              Pixels (default: 3)" in capsys.readouterr().out


def test_arguments_that_a_command_does_not_know_are_refused_or_go_to_its_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[tuple] = []

    def command(*, seed: int = 0, rest: Sequence[str]) -> int:
        """Shows what it is given.

        Args:
            seed: A number.
            rest: What is left.
        """
        seen.append((seed, rest))
        return 0

    assert run("vatt x", command, ["--trainer.max_steps", "7", "--seed", "5"]) == 0
    assert seen == [(5, ["--trainer.max_steps", "7"])]
    assert main(["doctor", "--trainer.max_steps", "7"]) == 2
    assert "`vatt doctor` has no option --trainer.max_steps." in capsys.readouterr().err


COMMAND_LINES = [
    *("shards build", "shards check", "tokenizer", "extract", "index", "search", "export"),
    *("evaluate retrieval", "evaluate linear", "evaluate zero-shot", "evaluate mteb", "convert"),
    *("doctor", "report"),
]


def test_help_of_every_command_explains_each_option_without_torch() -> None:
    code = (
        "import sys; from vatt.cli import main\n"
        f"for line in {COMMAND_LINES}:\n"
        "    assert main([*line.split(), '--help']) == 0, line\n"
        "assert not {'torch', 'av', 'numpy', 'lightning', 'jsonargparse'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("--options FILE") == 2 * len(COMMAND_LINES)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vatt ext", {"extract "}),
        ("vatt shards ", {"build", "check"}),
        ("vatt index --lea", {"--least-coverage "}),
        ("vatt extract --format p", {"parquet "}),
        ("vatt shards build --short", {"--short-side "}),
        ("vatt fit --config ti", {"tiny "}),
        ("vatt fit --trainer.max", {"--trainer.max_steps "}),
        ("vatt fit --mi", {"--minutes "}),
        ("vatt export --mod", {"--model", "--modality"}),
    ],
)
def test_shell_completes_commands_options_and_values(
    line: str, offered: set[str], tmp_path: Path
) -> None:
    answer = tmp_path / "answer"
    shell = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "|", "COMP_LINE": line}
    shell |= {"COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    command = [sys.executable, "-m", "vatt.cli"]
    subprocess.run(command, env={**os.environ, **shell}, capture_output=True, check=False)
    assert offered <= set(answer.read_text().split("|"))
