"""`vatt quickstart`: mistakes are told before any work; what is done is not done again.

The whole way, with training, is in `tests/project/test_first_day.py`.
"""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from labelled_media import write_sounds, write_videos

from vatt.cli import main
from vatt.demo.quickstart_data import MediaFacts, PackedMedia, pack_media, split_by_name
from vatt.demo.quickstart_training import TrainingPlan, trainable_modalities
from vatt.demo.stages import StageRecord
from vatt.errors import UserError
from vatt.media.folder import find_media
from vatt.packing.build import build_shards
from vatt.shards.shard_set import ShardSet

FACTS = MediaFacts(
    num_files=1_000,
    hours=10.0,
    num_pictures=1_000,
    num_sounds=900,
    num_captioned=800,
    num_video_audio=900,
    num_video_text=800,
    check_seconds=360.0,  # 100 times faster than it plays
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips with captions beside two of them, and a file that is no video."""
    media = tmp_path_factory.mktemp("quickstart") / "my clips"
    for name, label in write_videos(media, 1):
        if label != "red":
            (media / name).with_suffix(".txt").write_text(f"a {label} picture")
    (media / "broken.mp4").write_bytes(b"no media" * 100)
    (media / "notes.pdf").write_bytes(b"no media either")
    return media


@pytest.fixture
def packed(tmp_path: Path, tiny_shards: Path) -> PackedMedia:
    return PackedMedia(train=tiny_shards / "train", validation=None, facts=FACTS)


def plan(packed: PackedMedia, *, minutes: float = 10.0, config: str = "demo") -> TrainingPlan:
    return TrainingPlan(configs=[config], minutes=minutes, device="cpu", media=packed)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["FOLDER", "--minutes", "0"], "argument --minutes: must be positive, got 0.0", 2),
        (["FOLDER", "--config", "dmeo"], "Did you mean demo?", 2),
        (["FOLDER", "--config", "finetune_own"], "give one of pre-training", 2),
        (["FOLDER", "--minuts", "3"], "has no option --minuts. Did you mean --minutes?", 2),
        (["no folder"], "no media folder no folder: correct the path", 1),
        (["EMPTY"], "holds no media: looked for the extensions mp4,", 1),
        (["FOLDER", "-o", "FOLDER"], "exists and holds something else: choose another", 1),
        (["FOLDER", "-o", "new", "--model", "no model"], "no model", 1),
    ],
)
def test_mistakes_are_told_before_any_work(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"FOLDER": str(folder), "EMPTY": str(tmp_path / "empty")}
    assert main(["quickstart", *(places.get(word, word) for word in arguments)]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new" / "shards").exists()


def test_with_a_model_media_are_extracted_and_indexed_once(
    folder: Path,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["quickstart", str(folder), "--model", str(model_folder)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}: 4 media files → runs/my clips"
    assert [line.split()[0] for line in lines[1:]] == ["extract", "index", "Next:", "vatt"]
    assert "3 files" in lines[1]
    assert "1 failed: runs/my clips/features/failures.jsonl" in lines[1]
    assert lines[-1] == "  vatt search 'runs/my clips/index' 'somebody speaks'"
    assert not (tmp_path / "runs" / "my clips" / "shards").exists()

    assert main(arguments) == 0
    again = capsys.readouterr().out.splitlines()
    assert [line.endswith("(done before)") for line in again[1:3]] == [True, True]
    assert again[3:] == lines[3:]

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert main([*arguments[:1], str(copy), *arguments[2:], "-o", "runs/my clips"]) == 1
    assert f"is of the media in {folder}" in capsys.readouterr().err


def test_words_can_be_searched_at_once(
    folder: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    arguments = ["quickstart", str(folder), "--model", str(model_folder), "-o", out]
    assert main([*arguments, "--search", "a ring"]) == 0
    printed = capsys.readouterr().out
    assert "text → video_vt, searched exactly" in printed
    assert "green-0.mp4" in printed
    assert printed.splitlines()[-1] == f"  vatt search {out}/index 'a ring'"


def test_features_of_files_that_are_gone_are_deleted(
    folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    media = tmp_path / "media"
    shutil.copytree(folder, media)
    arguments = ["quickstart", str(media), "--model", str(model_folder), "-o", str(tmp_path / "o")]
    assert main(arguments) == 0
    (media / "red-0.mp4").unlink()
    assert main(arguments) == 0
    names = [path.name for path in (tmp_path / "o" / "features").glob("*.npz")]
    assert sorted(names) == ["blue-0.mp4.npz", "green-0.mp4.npz"]


@pytest.mark.slow
def test_files_that_cannot_be_decoded_are_left_out_of_the_shards_and_not_tried_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media, out = tmp_path / "media", tmp_path / "out"
    shutil.copytree(folder, media)
    damaged = bytearray((media / "red-0.mp4").read_bytes())
    damaged[1000:3000] = random.Random(0).randbytes(2000)  # the header stays
    (media / "damaged.mp4").write_bytes(damaged)
    out.mkdir()

    def pack() -> tuple[MediaFacts, str]:
        record = StageRecord(out / "record.json")
        packed = pack_media(media, find_media(media), out, record)
        files = [record.metadata["file"] for record in ShardSet(packed.train)]
        assert sorted(files) == ["blue-0.mp4", "green-0.mp4", "red-0.mp4"]
        return packed.facts, capsys.readouterr().out

    facts, printed = pack()
    assert (facts.num_files, facts.num_sounds, facts.num_captioned) == (3, 3, 2)
    assert "  left out: broken.mp4: is damaged" in printed
    assert "  left out: damaged.mp4: " in printed
    assert (out / "left_out.csv").read_text().count("\n") == 3
    assert len((out / "check.csv").read_text().splitlines()) == 5

    again, printed = pack()
    assert again == facts
    assert printed.count("(done before)") == 2

    shutil.copy(media / "blue-0.mp4", media / "damaged.mp4")  # mended
    record = StageRecord(out / "record.json")
    assert pack_media(media, find_media(media), out, record).facts.num_files == 4


def test_validation_is_a_tenth_by_name_where_that_is_enough() -> None:
    names = [f"{number}.mp4" for number in range(200)]
    train, validation = split_by_name(names)
    assert train | validation == {*names}
    assert 10 <= len(validation) <= 30
    assert split_by_name(names[:30]) == [{*names[:30]}]
    more = split_by_name([*names, "another.mp4"])
    assert more[0] >= train
    assert more[1] >= validation


@pytest.mark.parametrize(
    ("has", "modalities"),
    [
        ((True, True), ["video", "audio", "text"]),
        ((True, False), ["video", "audio"]),
        ((False, True), ["video", "text"]),
    ],
)
def test_a_model_has_the_modalities_of_the_media(has: tuple[bool, bool], modalities: list) -> None:
    assert trainable_modalities(*has) == modalities


def test_sounds_alone_are_no_training_data(tmp_path: Path) -> None:
    write_sounds(tmp_path / "sounds", 1)
    build_shards(tmp_path / "sounds", tmp_path / "shards", show_progress=False)
    facts = replace(FACTS, num_video_audio=0, num_video_text=0)
    sounds = PackedMedia(train=tmp_path / "shards", validation=None, facts=facts)
    with pytest.raises(UserError, match="no file has pictures together with sound or captions"):
        plan(sounds).settings()


def test_training_is_as_large_as_media_and_minutes_allow(packed: PackedMedia) -> None:
    settings = plan(packed).settings()
    assert settings["run.time_budget_seconds"] == 600
    assert settings["data.init_args.batch_size"] == 64
    # 36,000 s / 1.6 s would be 22,500 clips, and the cache of 2 GiB holds 12,928 of them; 150 s of
    # decoding at 100 times the speed of playing give 15,000 / 6.6 = 2,273
    assert settings["data.init_args.cache_views"] == 2
    assert plan(packed, minutes=1_000).settings()["data.init_args.cache_views"] == 13
    assert settings["trainer.max_steps"] == 20 * 2_000 // 64
    assert settings["model.init_args.schedule.warmup_steps"] == 62
    assert 3 < settings["model.init_args.model.text.vocab_size"] < 200

    few = replace(packed, facts=replace(FACTS, num_files=5, hours=5 * 1.6 / 3600))
    settings = plan(few).settings()
    assert settings["data.init_args.batch_size"] == 5
    assert settings["trainer.max_steps"] == 300

    mute = replace(packed, facts=replace(FACTS, num_video_audio=0))
    assert plan(mute).settings()["model.init_args.loss.video_audio_weight"] == 0


def test_the_settings_of_training_are_those_of_a_configuration(
    packed: PackedMedia, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = plan(packed, config="tiny")
    arguments = training.arguments(tmp_path / "runs ü", training.settings())
    assert main([*arguments, "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["run"]["dir"] == str(tmp_path / "runs ü")


@pytest.fixture
def record(tmp_path: Path) -> StageRecord:
    return StageRecord(tmp_path / "record.json")


def test_a_stage_is_done_again_if_its_inputs_change_or_its_result_is_gone(
    record: StageRecord, tmp_path: Path
) -> None:
    made, done = tmp_path / "made", []

    def run(inputs: int) -> dict:
        def work() -> dict:
            made.touch()
            done.append(inputs)
            return {"result": "made"}

        later = StageRecord(tmp_path / "record.json")  # as in the next process
        return later.run("paint", lambda: inputs, work, made)

    assert run(1)["result"] == run(1)["result"] == "made"
    run(2)
    made.unlink()
    run(2)
    assert done == [1, 2, 2]


def test_a_stage_that_was_interrupted_goes_on_only_with_the_same_inputs(
    record: StageRecord, tmp_path: Path
) -> None:
    assert [record.begin("train", inputs) for inputs in (1, 1, 2, 1)] == [False, True, False, False]
    record.run("train", lambda: 1, lambda: {"result": "trained"}, tmp_path)
    assert record.content["train"]["result"] == "trained"
    record.begin("train", 2)  # and is interrupted: the first result is no longer there
    assert "train" not in json.loads((tmp_path / "record.json").read_text())
