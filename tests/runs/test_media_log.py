"""Media in the record of a run: what is written and sent, when, and with modalities missing."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from training_runs import fit_arguments, read_rows
from wandb_files import end_wandb, pieces, read_history

from vatt.cli import main
from vatt.evaluation.embedding_table import EmbeddingTable
from vatt.media.clip import probe
from vatt.pages.clip_table import COLUMNS, MediaRow, paint_map, paint_strip, write_media
from vatt.pages.pictures import paint_sound
from vatt.runs.media_log import similarity_maps, with_found

SILENT_MODEL = ["--model.init_args.model.modalities=[video,text]"]
MUTE_LOSS = ["--model.init_args.loss.video_audio_weight=0"]
WORDLESS_MODEL = ["--model.init_args.model.modalities=[video,audio]"]
WORDLESS_LOSS = ["--model.init_args.loss.video_text_weight=0"]


@pytest.fixture(autouse=True)
def no_wandb_run_outlives_its_test() -> Iterator[None]:
    yield
    wandb.finish()


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "clips.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def unit(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


def table_of(**parts: Any) -> EmbeddingTable:
    """Three clips; the second has neither sound nor caption, the third no picture."""
    text = torch.zeros(3, 2, 2)
    text[0, 0], text[2, 1] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    given = {
        "keys": ("a", "b", "c"),
        "video_va": unit((1, 0), (0, 1), (1, 1)),
        "audio_va": unit((1, 1), (1, 0), (0, 1)),
        "video_vt": unit((1, 3), (1, 0), (1, 1)),
        "audio_vt": unit((3, 1), (1, 0), (0, 1)),
        "text_vt": text,
        "video_mask": torch.tensor([True, True, False]),
        "audio_mask": torch.tensor([True, False, True]),
        "text_mask": torch.tensor([[True, False], [False, False], [False, True]]),
    }
    return EmbeddingTable(**{**given, **parts})


@pytest.mark.slow
def test_run_keeps_clips_and_heat_maps_every_so_many_validations_and_sends_them(
    tiny_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ["--run.media_every_n_validations=2", "--run.wandb=offline"]
    options += ["--trainer.max_steps=8", "--trainer.val_check_interval=2"]
    assert main(fit_arguments(tiny_shards, run, *options)) == 0
    end_wandb()
    validated = [int(row["step"]) for row in read_rows(run) if row["val/text_to_video/R@1"]]
    assert validated == [1, 3, 5, 7]
    folders = sorted((run / "media").iterdir())
    assert [folder.name for folder in folders] == ["step-000001", "step-000005", "step-000007"]
    for folder in folders:
        rows = read_table(folder)
        assert len(rows) == 8
        named = {row[column] for row in rows for column in ("frames", "video", "sound")} - {""}
        maps = {"video-x-text.png", "video-x-audio.png", "audio-x-text.png"}
        files = {path.name for path in folder.iterdir()}
        assert files == {"clips.csv", "index.html", *named, *maps}
        assert set(re.findall(r'src="([^"]+)"', (folder / "index.html").read_text())) == (
            files - {"clips.csv", "index.html"}
        )
        scores = [float(rows[0][f"score {n}"]) for n in range(1, 6)]
        assert scores == sorted(scores, reverse=True)
        assert 1 <= int(rows[0]["place"]) <= 16  # two batches of eight
        assert rows[0]["caption"]
    sent = [row for row in read_history(pieces(run)[0]) if "media/clips/_type" in row]
    assert [row["trainer/global_step"] for row in sent] == [1, 5, 7]
    assert sent[0]["media/clips/_type"] == "table-file"
    assert sent[0]["media/clips/nrows"] == 8
    assert sent[0]["media/video x text/_type"] == "image-file"


@pytest.mark.slow
def test_steps_that_a_resumed_run_does_again_send_no_media_twice(
    tiny_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ["--run.media_every_n_validations=1", "--run.wandb=offline"]
    command = fit_arguments(tiny_shards, run, *options, "--trainer.val_check_interval=8")
    crash = ["--trainer.callbacks+=training_runs.FillDisk", "--trainer.callbacks.step=8"]
    assert main([*command, *crash]) == 1
    end_wandb()
    assert main([*command, "--ckpt_path=last"]) == 0  # from step 6
    end_wandb()
    sent = [
        [row["trainer/global_step"] for row in read_history(piece) if "media/clips/_type" in row]
        for piece in pieces(run)
    ]
    assert sent == [[7], [9]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "columns", "maps"),
    [
        (SILENT_MODEL + MUTE_LOSS, {"caption", "found 1"}, {"video-x-text.png"}),
        (WORDLESS_MODEL + WORDLESS_LOSS, set(), {"video-x-audio.png"}),
    ],
    ids=["no sound", "no text"],
)
def test_media_of_a_model_without_a_modality_are_those_of_the_others(
    tiny_shards: Path, tmp_path: Path, options: list[str], columns: set[str], maps: set[str]
) -> None:
    run = tmp_path / "run"
    steps = ["--trainer.max_steps=3", "--trainer.val_check_interval=3"]
    command = fit_arguments(tiny_shards, run, *steps, *options)
    assert main([*command, "--run.media_every_n_validations=1"]) == 0
    folder = run / "media" / "step-000002"
    assert {path.name for path in folder.glob("*-x-*")} == maps
    first = read_table(folder)[0]
    optional = ("caption", "found 1")
    assert {name for name in optional if first[name]} == columns & set(optional)


def test_interval_must_be_positive(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = fit_arguments(tiny_shards, tmp_path / "run", "--run.media_every_n_validations=0")
    assert main(command) == 1
    assert "run.media_every_n_validations must be at least 1, got 0" in capsys.readouterr().err


def test_first_captions_of_all_clips_are_searched_by_each_picture() -> None:
    rows = [MediaRow(key=key, frames=None, sound=None, caption=None) for key in "abc"]
    found = with_found(rows, table_of(), ["red", None, "blue"])
    names = [[caption for caption, _ in row.found] for row in found]
    assert names == [["blue", "red"], ["red", "blue"], []]
    assert [row.place for row in found] == [2, None, None]
    assert found[0].found[0][1] == pytest.approx(3 / 10**0.5)


def test_place_of_a_caption_agrees_with_the_order_of_those_found() -> None:
    generator = torch.Generator().manual_seed(0)
    video = torch.nn.functional.normalize(torch.randn(200, 64, generator=generator), dim=-1)
    here = torch.ones(200, dtype=torch.bool)
    table = EmbeddingTable(
        keys=("",) * 200,
        video_va=None,
        audio_va=None,
        video_vt=video,
        text_vt=video[:, None],  # every picture finds its own caption
        video_mask=here,
        audio_mask=~here,
        text_mask=here[:, None],
    )
    rows = [MediaRow(key="", frames=None, sound=None, caption=None)] * 200
    found = with_found(rows, table, [str(number) for number in range(200)])
    assert [row.found[0][0] for row in found] == [str(number) for number in range(200)]
    assert {row.place for row in found} == {1}


def test_heat_maps_hold_the_clips_that_have_both_modalities() -> None:
    maps = similarity_maps(table_of())
    assert maps["video x text"] == pytest.approx(torch.tensor([[10**-0.5]]))
    assert maps["video x audio"].shape == (1, 1)
    sound_and_words = torch.tensor([[3 * 10**-0.5, 10**-0.5], [0.0, 1.0]])
    assert maps["audio x text"] == pytest.approx(sound_and_words)
    assert similarity_maps(table_of(text_vt=None)).keys() == {"video x audio"}
    nothing = torch.zeros(3, dtype=torch.bool)
    assert similarity_maps(table_of(video_mask=nothing)).keys() == {"audio x text"}
    assert similarity_maps(table_of(video_mask=nothing, audio_vt=None)) == {}


def test_rows_lack_the_files_of_what_a_clip_lacks(tmp_path: Path) -> None:
    frames = torch.zeros(3, 33, 35, 3, dtype=torch.uint8)  # odd sizes, which H.264 refuses
    tone = torch.sin(torch.arange(8000) * 0.3)
    rows = [
        MediaRow(key="both", frames=frames, sound=tone, caption="<b>"),
        MediaRow(key="sound", frames=None, sound=tone, caption=None),
        MediaRow(key="none", frames=None, sound=None, caption=None),
    ]
    cells, pictures = write_media(tmp_path, rows, {}, frame_rate=5.0, sample_rate=8000)
    assert pictures == {}
    has_file = [[isinstance(cell, Path) for cell in line[2:5]] for line in cells]
    assert has_file == [[True, True, True], [False, False, True], [False, False, False]]
    info = probe(tmp_path / "clip-0.mp4")
    assert (info.height, info.width, info.sample_rate) == (32, 34, 8000)
    assert "&lt;b&gt;" in (tmp_path / "index.html").read_text()
    assert [list(row) for row in read_table(tmp_path)] == [list(COLUMNS)] * 3


def test_strip_shows_eight_frames_of_a_clip_in_order_at_one_height() -> None:
    shades = torch.arange(16, dtype=torch.uint8)[:, None, None, None] * 10
    for size in (32, 224):
        strip = paint_strip(shades.expand(16, size, size, 3))
        assert strip.shape == (96, 8 * 96 + 7 * 2, 3)
        middles = strip[48, 48 :: 96 + 2, 0].tolist()
        assert middles == sorted(middles)
        assert (middles[0], middles[-1], len(middles)) == (0, 150, 8)


def test_sound_is_light_where_it_is_loud_and_dark_in_silence() -> None:
    rate = 8000
    low = torch.sin(2 * torch.pi * 200 * torch.arange(rate) / rate)
    picture = paint_sound(low, rate).astype(int).sum(axis=-1)
    assert picture.mean(axis=1).argmax() > len(picture) / 2  # below the middle
    assert len(set(map(tuple, paint_sound(torch.zeros(rate), rate).reshape(-1, 3)))) == 1
    mel = torch.zeros(6, 4)  # [M, F]
    mel[5, 0] = 1.0  # late and low
    picture = paint_sound(mel, rate).astype(int).sum(axis=-1)
    assert picture.shape == (8, 12)
    assert picture[-1, -1] == picture.max()


def test_heat_map_goes_from_dark_to_light() -> None:
    picture = paint_map(torch.tensor([[0.9, -0.1], [0.2, 0.8]]))
    assert picture.shape == (512, 512, 3)
    brightness = picture.astype(int).sum(axis=-1)[128::256, 128::256]
    assert brightness[0, 0] > brightness[1, 1] > brightness[1, 0] > brightness[0, 1]
    assert paint_map(torch.ones(2, 2)).shape == (512, 512, 3)  # no range at all
