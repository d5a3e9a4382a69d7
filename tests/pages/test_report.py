import base64
import io
import json
import re
import shutil
import subprocess
import zlib
from dataclasses import replace
from importlib import resources
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import vatt.pages.report
from vatt.demo.corpus_scenes import ATTRIBUTES
from vatt.demo.retrieval import AUDIBLE_ATTRIBUTES
from vatt.errors import MediaError
from vatt.media.clip import probe
from vatt.media.write_mp4 import write_mp4
from vatt.pages.pictures import (
    SPECTROGRAM_SIZE,
    encode_jpeg,
    encode_png,
    overlay_heat,
    project_to_plane,
    read_poster,
    read_spectrogram,
)
from vatt.pages.report import write_report
from vatt.pages.report_data import AttentionExample, AttributeConfusion, ReportClip, ReportData
from vatt.pages.report_examples import choose_examples
from vatt.pages.templates import duration

NUM_CLIPS = 12
SILENT = 4
SHAPES, COLOURS, MOTIONS = ("ring", "star"), ("red", "green", "blue"), ("left", "up")
COMBINATIONS = [(s, c, m) for s in SHAPES for c in COLOURS for m in MOTIONS]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[ReportClip]:
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    made = []
    for i, (shape, colour, motion) in enumerate(COMBINATIONS):
        frames = np.zeros((10, 24, 32, 3), dtype=np.uint8)
        frames[..., i % 3] = 60 + 15 * i
        tone = 0.4 * np.sin(2 * np.pi * (300 + 200 * i) * np.arange(16_000) / 16_000)
        sound = {} if i == SILENT else {"waveform": tone, "sample_rate": 16_000}
        path = folder / f"{i}.mp4"
        write_mp4(path, frames + rng.integers(9, size=frames.shape, dtype=np.uint8), 10, **sound)
        title, caption = f"{colour} {shape}, {motion}", f"a {colour} {shape} is moving {motion}"
        attributes = (shape, colour, motion)
        media = path.read_bytes()
        made.append(ReportClip(title=title, caption=caption, media=media, attributes=attributes))
    return made


@pytest.fixture(scope="module")
def data(clips: list[ReportClip]) -> ReportData:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((NUM_CLIPS, 8))
    video, audio, text = (centres + 0.9 * rng.standard_normal((NUM_CLIPS, 8)) for _ in range(3))
    is_silent = np.arange(NUM_CLIPS)[:, None] == SILENT
    heard = np.where(is_silent, 0.0, audio)
    by_sound = np.where(is_silent, np.nan, audio @ video.T)
    attention = rng.random((2, 4, 4))
    frames = rng.integers(256, size=(4, 16, 16, 3), dtype=np.uint8)
    confusion = AttributeConfusion(SHAPES, torch.tensor([[9, 3], [0, 12]]))
    direction = {"R@1": 58.25, "R@5": 91.0, "R@10": 97.5, "MedR": 1.0}
    return ReportData(
        attributes=ATTRIBUTES,
        audible=AUDIBLE_ATTRIBUTES,
        title="A small run",
        about="Twelve clips.",
        metrics={
            "text_to_video": direction,
            "video_to_text": direction,
            "audio_to_video": {**direction, "R@1": 21.0, "ceiling": 42.0},
            "video_to_audio": {**direction, "R@1": 20.0, "ceiling": 42.0},
            "text_to_audio": {**direction, "num_queries": 1200.0, "num_candidates": 4.0},
            "oracles": {"shape+colour": 44.0},
            "seconds": {"corpus": 70.0, "training": 352.0},
            "num_candidates": NUM_CLIPS,
            "linear_evaluation": {
                "num_train": 1500,
                "num_test": 300,
                "rows": [
                    {
                        "modality": "video",
                        "attribute": "motion",
                        "chance": 12.5,
                        "pretrained": 87.25,
                        "random": 29.0,
                        "raw": 37.5,
                    }
                ],
            },
        },
        history=[
            {"step": "0", "train/loss_video_text": "4.85", "val/text_to_video/R@1": ""},
            {"step": "10", "train/loss_video_text": "2.5", "val/text_to_video/R@1": ""},
            {"step": "10", "val/text_to_audio/R@1": "4.5", "val/text_to_video/R@1": "58.25"},
        ],
        clips=clips,
        similarity={"text_to_video": text @ video.T, "audio_to_video": by_sound},
        spaces={"video-text space": {"video": video, "text": text}, "va": {"audio": heard}},
        attention=[AttentionExample(title="red ring", frames=frames, attention=attention)],
        confusions={"text_to_video": {"shape": confusion}},
        control={"text_to_video": {"R@1": 1.25}},
        summary={"Steps": "681"},
        facts={"Machine": {"torch": "2.13.0"}, "Training": {}},
        listings={"Settings": "arrangement: agnostic"},
    )


@pytest.fixture(scope="module")
def page(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, data)
    return path.read_text(encoding="utf-8")


def payload_of(page: str) -> dict:
    text = re.search(r'<script type="application/json" id="payload">(.*?)</script>', page, re.S)
    assert text is not None
    return json.loads(text[1])


def write(folder: Path, data: ReportData) -> str:
    write_report(folder / "report.html", data)
    return (folder / "report.html").read_text(encoding="utf-8")


def decode_picture(content: bytes, pixel_format: str) -> np.ndarray:
    with av.open(io.BytesIO(content)) as container:
        return next(container.decode(video=0)).to_ndarray(format=pixel_format)


def test_the_page_fetches_nothing(page: str):
    assert "default-src 'none'" in page
    library = (resources.files("vatt.pages") / "echarts.min.js").read_text(encoding="utf-8")
    assert page.count(library) == 1
    page = page.replace(library, "")
    addresses = re.findall(r"""(?:src|href)=["']?([^"'> ]*)""", page)
    assert addresses
    assert {a[:1] if a.startswith("#") else a[:5] for a in addresses} <= {"#", "data:"}
    assert "http" not in page.replace("http-equiv", "")


def test_the_page_says_the_numbers_in_words_and_names_everything_beside_them(page: str):
    text = " ".join(re.sub(r"<[^>]*>", " ", page.split("<script")[0]).split())
    for words in (
        "A small run",
        "first in 58 % of cases, and among its first five in 91 %",
        "Steps 681",
        "Guessing would get 8.33 %",
        "ceiling 42 %",
        "Oracle of shape and colour 44.0 %",
        "Trained on shuffled captions 1.2 %",
        "The model reaches 50 % of it",
        "text → audio A sentence finds its sound 58.2 % R@1 chance 25 % ",
        "1,200 queries among 4 candidates ",
        "Where the 7 min 2 s went",
        "87.5 %",  # 21 of 24 shapes are right
        "attribute pre-trained random weights raw input chance "
        "video motion 87.2 % 29.0 % 37.5 % 12.5 %",
        "features of 1,500 training videos",
        "2.13.0",
    ):
        assert words in text, words


def test_each_clip_is_in_the_page_once_and_the_script_refers_to_it(page: str, data: ReportData):
    payload = payload_of(page)
    for number, clip in enumerate(data.clips):
        media = base64.b64encode(clip.media).decode()
        assert page.count(media) == 1
        assert payload["clips"][number]["media"] == media
        assert payload["clips"][number]["caption"] == clip.caption
        assert page.count(f"data-clip={number} ") >= 1
    assert payload["clips"][SILENT]["spectrogram"] is None
    assert payload["clips"][0]["spectrogram"].startswith("data:image/png;base64,")


def test_results_are_marked_right_wrong_or_alike_in_words(page: str):
    by_sentence, by_sound = page.split('<section id="by-text"')[1].split('id="by-audio"')
    by_sound = by_sound.split("</section>")[0]
    assert "✓ right" in by_sentence
    assert "✗ wrong" in by_sentence
    assert "≈" not in by_sentence  # whoever reads a sentence knows the colour
    assert "≈ alike" in by_sound
    assert f"data-sound={SILENT} " not in by_sound  # a clip without sound asks nothing


def test_examples_are_right_ones_then_wrong_ones_from_nearly_right_to_worst():
    scores = np.eye(9) * 2
    scores[6, 0] = 3.0  # second
    scores[7, :4] = 3.0  # fifth
    scores[8, :7] = 3.0  # eighth
    scores[2] = np.nan  # no query
    chosen = choose_examples(scores, num_each=4)
    assert [e.query for e in chosen] == [0, 1, 4, 5, 6, 7, 8]
    assert [e.place for e in chosen] == [1, 1, 1, 1, 2, 5, 8]
    assert [clip for clip, _ in chosen[4].results][:2] == [0, 6]
    assert [len(e.results) for e in chosen[-2:]] == [
        5,
        6,
    ]  # the right one is added where it is missing
    assert chosen[-1].results[-1] == (8, 2.0)


def test_text_of_the_user_cannot_break_out_of_the_page(data: ReportData, tmp_path: Path):
    bad = '</script><script>alert("x")</script>'
    clip = replace(data.clips[0], caption=bad, title=bad, attributes=(bad, "red", "left"))
    page = write(
        tmp_path,
        replace(
            data,
            title=bad,
            verdict=bad,
            notes=[bad],
            clips=[clip, *data.clips[1:]],
            listings={bad: bad},
            facts={bad: {bad: bad}},
        ),
    )
    assert bad not in page
    assert page.count("<script") == 2
    assert payload_of(page)["clips"][0]["caption"] == bad


def test_similarities_come_back_from_the_page(page: str, data: ReportData):
    for name, values in data.similarity.items():
        shown = np.array(payload_of(page)["maps"][name]["values"], dtype=np.float64)  # null: NaN
        asks = np.array([name == "text_to_video" or i != SILENT for i in range(NUM_CLIPS)])
        assert np.isnan(shown[~asks]).all()
        assert np.allclose(shown[asks], values[asks], atol=1e-4)


def test_curves_skip_empty_cells_and_keep_the_mean_when_thinned(page: str, data, tmp_path: Path):
    charts = payload_of(page)["charts"]
    assert [c["title"] for c in charts] == [
        "Loss of each pair",
        "Found first on the validation set",
    ]
    assert charts[0]["series"][0]["points"] == [[0, 4.85], [10, 2.5]]
    assert charts[1]["series"][0]["points"] == [[10, 58.25]]
    assert charts[1]["series"][1]["name"] == "text → audio"
    rng = np.random.default_rng(0)
    losses = rng.random(4000)
    rows = [{"step": i, "train/loss_video_audio": x} for i, x in enumerate(losses)]
    rows.append({"step": 4000, "train/loss_video_audio": "nan"})
    long = payload_of(write(tmp_path, replace(data, history=rows)))["charts"][0]["series"][0]
    assert len(long["points"]) == 400
    assert np.mean(long["points"], axis=0) == pytest.approx([1999.5, losses.mean()], rel=1e-4)


def test_a_clip_that_lacks_a_modality_has_no_place_in_the_plane(page: str):
    first, second = payload_of(page)["spaces"]
    assert set(first["as_is"]["points"]) == {"video", "text"}
    assert [p is None for p in second["centred"]["points"]["audio"]].index(True) == SILENT
    means = np.mean(first["centred"]["points"]["video"], axis=0)
    assert np.abs(means).max() < 1e-4


def test_media_over_the_budget_are_left_out_but_not_those_of_the_examples(
    data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    similarity = np.eye(NUM_CLIPS)
    similarity[:, 7] = 0.5
    sizes = sum(len(clip.media) for clip in data.clips)
    monkeypatch.setattr(vatt.pages.report, "MEDIA_BUDGET_BYTES", int(0.8 * sizes))
    page = write(tmp_path, replace(data, similarity={"text_to_video": similarity}))
    playable = {i for i, c in enumerate(payload_of(page)["clips"]) if c["media"]}
    shown = {c for e in choose_examples(similarity) for c, _ in e.results}
    assert shown <= playable
    assert len(playable) < NUM_CLIPS


def test_of_many_clips_some_are_shown_together(
    data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(vatt.pages.report, "MAX_WALL", 5)
    page = write(tmp_path, data)
    shown = payload_of(page)["maps"]["text_to_video"]
    assert shown["clips"] == [0, 3, 6, 8, 11]
    expected = data.similarity["text_to_video"][np.ix_(shown["clips"], shown["clips"])]
    assert np.allclose(shown["values"], expected, atol=1e-4)
    assert "Shown are 5 clips of 12." in page


def test_metrics_alone_make_a_page(tmp_path: Path):
    page = write(tmp_path, ReportData(title="Numbers", metrics={}))
    assert re.findall(r'<section id="([a-z-]+)"', page) == ["run"]


def test_clips_without_attributes_make_a_page(data: ReportData, tmp_path: Path):
    bare = [replace(clip, attributes=()) for clip in data.clips]
    page = write(tmp_path, replace(data, clips=bare, attributes=(), confusions={}))
    assert "Sort by" not in page
    assert "≈" not in page.split("<script")[0]


def test_what_does_not_belong_to_the_clips_is_refused(data: ReportData):
    with pytest.raises(ValueError, match=r"of 12 clips must be \[12, 12\], got \(3, 12\)"):
        replace(data, similarity={"text_to_video": np.zeros((3, 12))})
    with pytest.raises(ValueError, match="got 'video_to_text'"):
        replace(data, similarity={"video_to_text": np.zeros((12, 12))})
    with pytest.raises(ValueError, match="each of 12 clips, got 5 of audio"):
        replace(data, spaces={"va": {"audio": np.zeros((5, 8))}})
    with pytest.raises(ValueError, match="a value for each of"):
        replace(data, clips=[replace(data.clips[0], attributes=("ring",)), *data.clips[1:]])


def test_a_failure_leaves_the_old_report(data: ReportData, tmp_path: Path):
    (tmp_path / "report.html").write_text("old")
    broken = replace(data.clips[3], media=b"no video")
    with pytest.raises(MediaError):
        write(tmp_path, replace(data, clips=[*data.clips[:3], broken, *data.clips[4:]]))
    assert (tmp_path / "report.html").read_text() == "old"
    with pytest.raises(OSError, match="absent"):
        write_report(tmp_path / "absent" / "report.html", data)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html"]


@pytest.mark.parametrize(("channels", "name"), [(3, "rgb24"), (4, "rgba")])
def test_a_png_holds_exactly_its_pixels(channels: int, name: str):
    pixels = np.random.default_rng(0).integers(256, size=(5, 7, channels), dtype=np.uint8)
    header = encode_png(pixels)[12:33]  # FFmpeg does not look at the check sums, browsers do
    assert zlib.crc32(header[:-4]) == int.from_bytes(header[-4:])
    assert np.array_equal(decode_picture(encode_png(pixels), name).reshape(pixels.shape), pixels)


def test_a_poster_looks_like_the_clip_and_keeps_its_aspect(data: ReportData):
    clip = data.clips[2].media
    poster = base64.b64decode(read_poster(clip, probe(clip)).split(",")[1])
    pixels = decode_picture(poster, "rgb24").astype(float)
    assert pixels.shape == (96, 128, 3)
    assert np.abs(pixels.mean(axis=(0, 1)) - (4, 4, 94)).max() < 8
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    assert np.abs(decode_picture(encode_jpeg(smooth), "rgb24").astype(int) - smooth).mean() < 4


@pytest.mark.parametrize("number", [1, 9])
def test_a_spectrogram_is_dark_at_the_pitch_of_the_tone(data: ReportData, number: int):
    clip = data.clips[number].media
    picture = base64.b64decode(read_spectrogram(clip, probe(clip)).split(",")[1])
    alpha = decode_picture(picture, "rgba")[..., 3].astype(float)
    assert alpha.shape == SPECTROGRAM_SIZE
    bands = SPECTROGRAM_SIZE[0]
    band = bands * np.log((300 + 200 * number) / 80) / np.log(8000 / 80)
    assert abs((bands - 1 - alpha.mean(axis=1).argmax()) - band) <= 2
    assert np.median(alpha) < 60


def test_attention_is_strongest_where_the_overlay_is_most_opaque():
    attention = np.full((2, 3, 4), 0.01)
    attention[1, 2, 0] = 0.9
    first, second = (
        decode_picture(base64.b64decode(uri.split(",")[1]), "rgba")
        for uri in overlay_heat(attention)
    )
    assert first.shape == (3, 4, 4)
    assert second[2, 0, 3] == 255
    assert np.delete(second[..., 3].ravel(), 8).max() < 20


def test_the_plane_is_that_of_the_largest_eigenvectors_of_the_covariance():
    points = np.random.default_rng(0).standard_normal((40, 6)) @ np.diag([5, 3, 1, 1, 1, 1])
    plane, shares = project_to_plane(points)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    expected = (points - points.mean(axis=0)) @ vectors[:, [-1, -2]]
    expected /= np.abs(expected).max()
    assert np.allclose(np.abs(plane), np.abs(expected), atol=1e-9)
    assert shares == pytest.approx((values[-1] / values.sum(), values[-2] / values.sum()))


def test_durations_read_as_a_person_says_them():
    seconds = (0.44, 9.96, 59.6, 312, 3840)
    said = ["0.4 s", "10 s", "1 min 0 s", "5 min 12 s", "1 h 4 min"]
    assert [duration(s).replace("\u00a0", " ") for s in seconds] == said


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")
def test_a_browser_draws_every_chart_and_reports_no_error(data: ReportData, tmp_path: Path):
    page = write(tmp_path, data)
    watch = "<script>addEventListener('error', (e) => { document.title = 'broken ' + e.message; })"
    (tmp_path / "report.html").write_text(page.replace("<style>", f"{watch}</script><style>", 1))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"]
    address = (tmp_path / "report.html").as_uri()
    run = subprocess.run(
        [*command, "--dump-dom", address], capture_output=True, text=True, timeout=60, check=True
    )
    drawn = run.stdout
    assert re.search("<title>(.*?)</title>", drawn)[1] == "A small run"
    assert drawn.count('role="img" aria-label="Loss of each pair: video–text from 4.85') == 1
    heat_maps = re.findall(r'class="heat".*?</canvas>', drawn, re.S)
    assert [bool(re.search(r'<canvas[^>]* height="[1-9]', h)) for h in heat_maps] == [True, True]
    scatters = re.findall(r'class="scatter".*?</figure>', drawn, re.S)
    assert [s.count('<path d="M') >= 11 for s in scatters] == [True, True]
    assert not re.search(r'<img alt="" data-poster="\d+">', drawn)  # each has its picture
