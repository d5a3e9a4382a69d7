"""`vatt index` and `vatt search`: from features to segments, and to a page that plays them."""

import base64
import csv
import fcntl
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from media_files import KINDS, make_file, make_still
from pyarrow import parquet

import vatt
from vatt import VATT, FeatureExtractor, Features, Index, Tokenizer, preset, save_model
from vatt.cli import main
from vatt.config.options import IndexOptions
from vatt.errors import UserError
from vatt.features.folders import FeatureFolder
from vatt.media.clip import probe
from vatt.search.answer import clock
from vatt.search.files import RowWriter, read_index_json
from vatt.search.hits import Hits
from vatt.search.page import NOTEBOOK_HITS, encode_tile
from vatt.search.scale import score_scale

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WORDS = "a red ring turns while a dog barks"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_model(VATT(preset("tiny")), folder, Tokenizer.train([WORDS], 20))
    return folder


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Path:
    """Five clips in two folders, a file of 3 s, and one without sound."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "talks").mkdir()
    for number, path in enumerate(sorted((tiny_corpus / "train").glob("*.mp4"))[:5]):
        shutil.copy(path, folder / ("talks" if number % 2 else "") / path.name)
    for name in ("plain.mp4", "silent.mp4"):
        make_file(folder / name, KINDS[name])
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory, model: Path, media: Path) -> Path:
    """Windows that overlap by half."""
    out = tmp_path_factory.mktemp("features") / "out"
    assert extract(media, out, model) == 0
    return out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, features: Path) -> Path:
    out = tmp_path_factory.mktemp("built") / "index"
    assert run("index", features, "-o", out) == 0
    return out


def run(*arguments: str | Path) -> int:
    return main([*map(str, arguments)])


def extract(source: Path, out: Path, model: Path, *more: str) -> int:
    hop = ("--hop-seconds", "0.2", "--workers", "0")
    return run("extract", source, "-o", out, "--model", model, *hop, *more)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict:
    capsys.readouterr()
    assert run("search", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def rows_of(features: Path, name: str) -> list[tuple[str, float, np.ndarray]]:
    """Source, start and vector of each window that has one, in the order of the files."""
    return [
        (kept.metadata["source"], start, vector)
        for kept in map(Features.load, sorted(features.rglob("*.npz")))
        if name in kept.arrays
        for start, vector in zip(kept.start_seconds.tolist(), kept[name].numpy(), strict=True)
        if vector.any()
    ]


def test_words_find_the_windows_that_a_plain_loop_finds(
    built: Path, features: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = answer(capsys, built, "a red ring", "-k", "4", "--all-windows")
    assert (said["query_modality"], said["array"], said["search"]) == (
        "text",
        "video_vt",
        "exactly",
    )
    query = FeatureExtractor.from_pretrained(model, device="cpu").encode_text("a red ring")[0]
    expected = sorted(rows_of(features, "video_vt"), key=lambda one: -one[2] @ query.numpy())[:4]
    assert [hit["rank"] for hit in said["hits"]] == [1, 2, 3, 4]
    for hit, (source, start, vector) in zip(said["hits"], expected, strict=True):
        assert (hit["source"], hit["start_seconds"]) == (source, start)
        assert hit["score"] == pytest.approx(float(vector @ query.numpy()), abs=1e-5)
        assert Path(hit["file"]).is_file()
        assert hit["end_seconds"] > start
    keys = "rank source file offset size start_seconds end_seconds score row num_more z"
    assert list(said["hits"][0]) == keys.split()


def test_every_window_with_a_modality_is_a_row_and_no_other(built: Path, features: Path) -> None:
    index = Index(built)
    assert set(index.arrays) == {"video_va", "video_vt", "audio_va", "audio_vt"}
    for name in index.arrays:
        rows = rows_of(features, name)
        matrix = index._files.matrix(name)
        assert matrix.dtype == np.float32
        assert np.allclose(matrix, np.stack([one[2] for one in rows]), atol=1e-6)
        assert np.allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-6)
    videos = list(map(Features.load, sorted(features.rglob("*.npz"))))
    assert len(index) == sum(map(len, videos))
    assert len(index._files.matrix("audio_va")) < len(index._files.matrix("video_va"))


def test_hits_are_distinct_places_or_files_or_all_windows(built: Path) -> None:
    index = Index(built)
    windows = index.search(text="a dog", k=1000, distinct="window")
    assert len(windows) == len(index._files.matrix("video_vt"))
    kept: list = []
    for hit in windows:
        if not any(
            hit.source == other.source
            and min(hit.end_seconds, other.end_seconds)
            - max(hit.start_seconds, other.start_seconds)
            > 1e-3
            for other in kept
        ):
            kept.append(hit)
    assert len(kept) < len(windows)
    assert index.search(text="a dog", k=1000) == kept
    for k in (1, 3, len(kept)):
        assert index.search(text="a dog", k=k) == kept[:k]
    files = index.search(text="a dog", k=1000, distinct="file")
    assert len(files) == 7
    assert files == [next(h for h in windows if h.source == one.source) for one in files]


def test_a_query_by_file_finds_that_file(
    built: Path, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = answer(capsys, built, media / "plain.mp4", "--per-file")
    assert (video["query_modality"], video["array"]) == ("video", "video_va")
    assert video["hits"][0]["source"] == "plain.mp4"
    sound = answer(
        capsys, built, media / "plain.mp4", "--query-modality", "audio", "--modality", "audio"
    )
    assert (sound["query_modality"], sound["array"]) == ("audio", "audio_va")
    across = answer(capsys, built, media / "plain.mp4", "--query-modality", "audio")
    assert across["array"] == "video_va"
    words = answer(capsys, built, media / "plain.mp4", "--space", "vt", "--modality", "audio")
    assert words["array"] == "audio_vt"


def test_python_gives_what_the_command_gives(
    built: Path, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = Index(built, device="cpu")
    said = answer(capsys, built, "a red ring", "--no-per-file")
    assert [asdict(hit) for hit in index.search(text="a red ring")] == [
        {name: value for name, value in hit.items() if name not in ("rank", "z")}
        for hit in said["hits"]
    ]
    vector = index.extractor.encode_audio(media / "plain.mp4", space="va")[0]
    found = index.search(audio=media / "plain.mp4", modality="audio")
    assert index.search(vector, modality="audio", space="va") == found
    assert index.search(4 * vector, modality="audio", space="va") == found
    assert index.search("a red ring") == index.search(text="a red ring")
    assert repr(index).startswith(f"Index({str(built)!r}, {len(index)} windows of ")
    with pytest.raises(ValueError, match="give one query"):
        index.search("a red ring", text="a dog")
    with pytest.raises(UserError, match="choose one by modality and space"):
        index.search(vector)
    with pytest.raises(ValueError, match="give one query"):
        index.search(text="a", audio="b")
    with pytest.raises(ValueError, match=r"float \[24\], got \[12\]"):
        index.search(np.ones(12), modality="audio", space="va")
    with pytest.raises(ValueError, match="finite and not zero"):
        index.search(np.zeros(24), modality="audio", space="va")
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        index.search(text="a dog", k=0)
    assert vatt.Hit is type(found[0])


def test_hits_play_in_a_notebook_and_are_a_table(built: Path, media: Path, tmp_path: Path) -> None:
    hits = Index(built).search("a red ring", k=3)
    shown = hits._repr_html_()
    assert shown.count("<video controls") == 3
    content = base64.b64decode(re.search(r'"data:video/mp4;base64,([^"]+)"', shown)[1])
    assert probe(content).duration_seconds == pytest.approx(
        hits[0].end_seconds - hits[0].start_seconds, abs=0.15
    )
    for hit in hits:
        assert hit.source in shown
        assert f"{hit.score:.3f}" in shown
    assert str(media) not in shown  # as it may be shared
    for some in (hits[:2], pickle.loads(pickle.dumps(hits))[:2]):
        assert some == list(hits)[:2]
        assert some._repr_html_().count("<video controls") == 2
    table = hits.to_pandas()
    assert table.to_dict("records") == [asdict(hit) for hit in hits]
    assert list(hits[:0].to_pandas()) == list(asdict(hits[0]))
    assert "no hits" in hits[:0]._repr_html_()


def test_hits_that_do_not_play_in_a_notebook_say_why(built: Path, tmp_path: Path) -> None:
    hits = Index(built, media=tmp_path).search("a red ring", k=12)
    shown = hits._repr_html_()
    assert shown.count("does not play: ") == NOTEBOOK_HITS
    assert "<video" not in shown
    assert "and 2 more" in shown
    assert "&lt;b&gt;" in Hits([replace(hits[0], source="<b>")])._repr_html_()


def test_the_command_shows_the_best_moment_of_each_file_and_counts_the_others(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = Index(built)
    moments = index.search(text="a dog", k=1000)
    said = answer(capsys, built, "a", "dog", "-k", "3")
    assert said["query"] == "a dog"
    assert said == answer(capsys, built, "a dog", "-k", "3", "--per-file")
    least = said["hits"][-1]["score"]
    for hit in said["hits"]:
        own = [one for one in moments if one.source == hit["source"]]
        assert own[0].row == hit["row"]
        assert hit["num_more"] == sum(one.score >= least for one in own) - 1
    assert any(hit["num_more"] for hit in said["hits"])
    assert run("search", built, "a dog", "-k", "3") == 0
    table = capsys.readouterr().out
    for hit in said["hits"]:
        (line,) = (one for one in table.splitlines() if hit["source"] in one)
        more = re.search(r"\+(\d+) more moments? in this file$", line)
        assert (int(more[1]) if more else 0) == hit["num_more"]
    every = answer(capsys, built, "a dog", "-k", "3", "--no-per-file")["hits"]
    assert [hit["row"] for hit in every] == [hit.row for hit in moments[:3]]


def test_an_index_of_one_file_shows_its_moments(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(features / "plain.mp4.npz", tmp_path / "one")
    assert run("index", tmp_path / "one", "-o", tmp_path / "index") == 0
    assert len(answer(capsys, tmp_path / "index", "a dog")["hits"]) > 1
    assert len(answer(capsys, tmp_path / "index", "a dog", "--per-file")["hits"]) == 1


def test_scores_have_a_scale(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(capsys, built, "a red ring")
    scores = [hit.score for hit in Index(built).search("a red ring", k=1000, distinct="window")]
    assert said["scale"]["mean"] == pytest.approx(np.mean(scores))
    assert said["scale"]["standard_deviation"] == pytest.approx(np.std(scores))
    for hit in said["hits"]:
        z = (hit["score"] - np.mean(scores)) / np.std(scores)
        assert hit["z"] == pytest.approx(z)
    # of random directions the best is about where it is said to be
    random = np.random.default_rng(0).normal(size=(1001, 64)).astype(np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    scale = score_scale(random[1:], random[0])
    assert scale is not None
    assert scale.z(float((random[1:] @ random[0]).max())) == pytest.approx(
        scale.best_by_chance, abs=0.5
    )
    assert score_scale(random[:5], random[0]) is None
    assert score_scale(np.repeat(random[:1], 50, axis=0), random[0]) is None


def test_hits_as_csv_have_no_internal_fields(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hits = answer(capsys, built, "a red ring")["hits"]
    assert run("search", built, "a red ring", "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    names = ["rank", "source", "file", "start_seconds", "end_seconds", "score", "z", "num_more"]
    assert [list(row) for row in rows] == [names] * len(hits)
    for row, hit in zip(rows, hits, strict=True):
        assert (row["source"], int(row["num_more"])) == (hit["source"], hit["num_more"])
        for name in ("score", "z", "start_seconds", "end_seconds"):
            assert float(row[name]) == pytest.approx(hit[name], abs=1e-6)
    assert run("search", built, "a dog", "--csv", "--json") == 2
    assert "--json and --csv exclude each other" in capsys.readouterr().err


def test_a_model_of_few_clips_is_said_to_be_one(
    built: Path, features: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = model / "README.md"

    def warning(facts: str) -> str:
        card.write_text(f"---\nvatt: {facts}\n---\n")
        assert run("search", built, "a red ring") == 0
        return capsys.readouterr().err

    try:
        few = "{data: [{name: a, clips: 300}, {name: b, clips: 7000}]}"
        assert warning(few).startswith("the model was trained on 7,300 clips, fewer than 100,000:")
        assert warning(few).count("\n") == 1
        assert warning("{data: [{name: a, clips: 100000}]}") == ""
        assert warning("{data: [{name: a, clips: 300}, {name: b}]}") == ""
        assert warning("{data: [{name: a, clips: 300}], started_from: runs/other}") == ""
        assert warning("{}") == ""
    finally:
        card.unlink()


@pytest.mark.parametrize("form", ["safetensors", "parquet"])
def test_other_formats_give_the_same_answers(
    built: Path, media: Path, model: Path, tmp_path: Path, form: str
) -> None:
    assert extract(media, tmp_path / "features", model, "--format", form) == 0
    assert run("index", tmp_path / "features", "-o", tmp_path / "index") == 0
    other, first = Index(tmp_path / "index"), Index(built)
    assert other.arrays == first.arrays
    for modality in ("video", "audio"):
        mine = other.search(text="a red ring", k=7, modality=modality)
        theirs = first.search(text="a red ring", k=7, modality=modality)
        assert mine == theirs


def test_an_index_is_replaced_as_a_whole(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    first, report = Index.build(features, out)
    assert report.num_sources == 7
    before = first.search(text="a dog")
    assert run("index", features, "-o", out, "--modality", "audio", "--space", "va") == 0
    assert Index(out).arrays == ("audio_va",)
    assert sorted(path.name for path in out.iterdir()) == [".lock", "data-2", "index.json"]
    assert first.near(np.ones(12), "video_vt", 1000, "window")  # who has it open goes on reading
    assert run("index", features, "-o", out) == 0
    assert Index(out).search(text="a dog") == before


@pytest.mark.slow
def test_a_killed_build_leaves_the_index_that_was_there_or_none(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = tmp_path / "features"
    for number in range(40):
        for path in features.rglob("*.npz"):
            kept = Features.load(path)
            name = f"{number}/{kept.metadata['source']}"
            (many / name).parent.mkdir(parents=True, exist_ok=True)
            Features(**(vars(kept) | {"metadata": {**kept.metadata, "source": name}})).save(
                many / f"{name}.npz"
            )
    out = tmp_path / "index"
    command = [sys.executable, "-m", "vatt.cli", "index", str(many), "-o", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def kill_when_begun(data: str) -> None:
        process = subprocess.Popen(command, env=environment)
        while not (out / data).is_dir() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert (out / data).is_dir()

    kill_when_begun("data-1")
    assert run("search", out, "a dog") == 2
    assert "there is no index in" in capsys.readouterr().err
    assert run("index", features, "-o", out) == 0
    before = Index(out).search(text="a dog")
    kill_when_begun("data-3")
    assert read_index_json(out)["data"] == "data-2"
    assert Index(out).search(text="a dog") == before
    assert run("index", many, "-o", out) == 0
    assert sorted(path.name for path in out.iterdir()) == [".lock", "data-4", "index.json"]
    assert Index(out)._files.num_sources == 280


def test_two_builds_do_not_mix(features: Path, tmp_path: Path) -> None:
    Index.build(features, tmp_path / "index")
    with (tmp_path / "index" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process makes an index in"):
            Index.build(features, tmp_path / "index")


def test_rows_that_are_no_direction_are_left_out(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "features"
    shutil.copytree(features, copy)
    kept = Features.load(copy / "plain.mp4.npz")
    kept["video_vt"][2] = torch.nan
    kept["video_vt"][3] = 0
    kept.save(copy / "plain.mp4.npz")
    assert run("index", copy, "-o", tmp_path / "index") == 0
    assert "video_vt: 1 rows hold NaN or infinity and are left out" in capsys.readouterr().out
    index = Index(tmp_path / "index")
    hits = index.near(np.ones(12), "video_vt", 1000, "window")
    assert np.isfinite(index._files.matrix("video_vt")).all()
    starts = {hit.start_seconds for hit in hits if hit.source == "plain.mp4"}
    assert not starts & set(kept.start_seconds[2:4].tolist())
    assert len(starts) == len(kept) - 2


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_ends_of_files_that_are_mostly_padding_are_left_out_but_not_short_files(
    media: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    source, features, built = (tmp_path / name for name in ("media", "features", "index"))
    source.mkdir()
    shutil.copy(media / "plain.mp4", source)  # 3 s: the last window of 0.8 s begins at 2.8 s
    short = replace(KINDS["silent.mp4"], video_seconds=0.2)
    make_file(source / "short.mp4", short)
    arguments = ("--hop-seconds", "0.7", "--workers", "0", "--format", form)
    assert run("extract", source, "-o", features, "--model", model, *arguments) == 0
    assert run("index", features, "-o", built, "--least-coverage", "0.5") == 0
    assert "video_vt: 1 rows are of ends of files" in capsys.readouterr().out
    kept = Index(built).search([1.0] * 12, modality="video", space="vt", k=9, distinct="window")
    starts = sorted((hit.source, round(hit.start_seconds, 3)) for hit in kept)
    whole = [("plain.mp4", start) for start in (0.0, 0.7, 1.4, 2.1)]
    assert starts == [*whole, ("short.mp4", 0.0)]
    assert run("index", features, "-o", built) == 0
    kept = Index(built).search([1.0] * 12, modality="video", space="vt", k=9, distinct="window")
    assert len(kept) == 6
    assert run("index", features, "-o", built, "--least-coverage", "2") == 2
    assert "must be from 0 to 1, got 2" in capsys.readouterr().err


def test_samples_of_shards_are_found_and_play(
    tiny_shards: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards / "train", shards)
    assert extract(shards, tmp_path / "features", model) == 0
    assert run("index", tmp_path / "features", "-o", tmp_path / "index") == 0
    page = tmp_path / "page.html"
    said = answer(capsys, tmp_path / "index", "a dog", "--html", page)
    assert all(hit["source"].startswith("0000") for hit in said["hits"])
    assert all(hit["file"].endswith(".tar") and hit["size"] > 0 for hit in said["hits"])
    assert page.read_text().count("<video") == 5
    shards.rename(tmp_path / "moved")
    assert run("search", tmp_path / "index", "a dog", "--html", page) == 0
    assert "there is no such shard any more" in capsys.readouterr().err
    assert page.read_text().count("does not play") == 5
    media = ("--media", tmp_path / "moved")
    assert run("search", tmp_path / "index", "a dog", "--html", page, *media) == 0
    assert page.read_text().count("<video") == 5


def test_media_and_model_that_were_moved_are_found_where_the_user_says(
    media: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(media, tmp_path / "media")
    shutil.copytree(model, tmp_path / "model")
    assert extract(tmp_path / "media", tmp_path / "features", tmp_path / "model") == 0
    index = tmp_path / "index"
    assert run("index", tmp_path / "features", "-o", index) == 0
    (tmp_path / "media").rename(tmp_path / "there")
    (tmp_path / "model").rename(tmp_path / "other")
    assert run("search", index, "a dog") == 1
    assert "no model at" in capsys.readouterr().err
    page = tmp_path / "page.html"
    moved = ("--model", tmp_path / "other", "--media", tmp_path / "there", "--html", page)
    assert run("search", index, "a dog", *moved) == 0
    assert page.read_text().count("<video") == 5
    torch.manual_seed(1)
    save_model(VATT(preset("tiny")), tmp_path / "wrong", Tokenizer.train([WORDS], 20))
    assert run("search", index, "a dog", "--model", tmp_path / "wrong") == 2
    assert "is not the model that made the features" in capsys.readouterr().err


def test_features_of_an_earlier_version_need_model_and_media_named(
    features: Path, media: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "features"
    for path in features.rglob("*.npz"):
        kept = Features.load(path)
        said = {name: kept.metadata[name] for name in ("source", "stamp", "settings")}
        (old / path.relative_to(features)).parent.mkdir(parents=True, exist_ok=True)
        Features(**(vars(kept) | {"metadata": said})).save(old / path.relative_to(features))
    assert extract(media, old, model) == 0
    assert "0 made" in capsys.readouterr().out
    assert run("index", old, "-o", tmp_path / "index") == 0
    assert run("search", tmp_path / "index", "a dog") == 2
    assert "do not say which model made them: give --model" in capsys.readouterr().err
    page = tmp_path / "page.html"
    more = ("--media", media, "--model", model)
    assert run("index", old, "-o", tmp_path / "index", *more) == 0
    assert run("search", tmp_path / "index", "a dog", "--html", page) == 0
    assert page.read_text().count("<video") == 5


def test_approximate_search_says_how_much_it_finds(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    assert run("index", features, "-o", out, "--approximate") == 0
    assert re.search(r"video_vt .*faiss IVF1,SQ8, .*recall@10 1\.000", capsys.readouterr().out)
    assert read_index_json(out)["arrays"]["video_vt"]["approximate"]["recall@10"] == 1
    near = answer(capsys, out, "a dog", "-k", "3")
    exact = answer(capsys, out, "a dog", "-k", "3", "--exact")
    assert (near.pop("search"), exact.pop("search")) == ("approximately", "exactly")
    assert near == exact


def test_more_than_a_million_rows_without_faiss_are_searched_exactly_with_a_note(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("vatt.search.build.MOST_EXACT_ROWS", 3)
    index, report = Index.build(features, tmp_path / "index")
    assert str(report).count('pip install "vatt[search]"') == 1
    assert not index.is_approximate("video_vt")
    with pytest.raises(UserError, match=r'needs faiss: pip install "vatt\[search\]"'):
        Index.build(features, tmp_path / "other", IndexOptions(approximate=True))
    assert not (tmp_path / "other").exists()


def test_a_table_has_readable_times_and_unknown_words_are_named(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search", built, "a purple dog", "-k", "2") == 0
    said = capsys.readouterr()
    assert said.err == "not known to the model: purple\n"
    lines = said.out.splitlines()
    assert lines[0] == "text → video_vt, searched exactly"
    assert lines[1].split() == ["score", "z", "start", "end", "file"]
    assert re.fullmatch(
        r"1  [- ]0\.\d{3}  +-?\d+\.\d  0:0\d\.\d  0:0\d\.\d  \S+\.mp4( .*)?", lines[2]
    )
    assert len(lines) == 5
    assert lines[4].startswith("z: standard deviations above the mean score; by chance the best")
    assert clock(59.96) == "1:00.0"
    assert clock(3725.04) == "1:02:05.0"


def test_a_page_plays_only_the_segment(built: Path, media: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run("search", built, media / "plain.mp4", "--html", page, "-k", "3") == 0
    text = page.read_text()
    assert "default-src 'none'" in text
    assert text.count("<video") == 4  # and the query
    assert {one[:5] for one in re.findall(r'src="([^"]*)', text)} == {"data:"}
    first = re.findall(r'base64,([^"]*)"', text)[1]
    hit = Index(built).search(video=media / "plain.mp4", k=1)[0]
    length = hit.end_seconds - hit.start_seconds
    info = probe(base64.b64decode(first))
    assert info.duration_seconds == pytest.approx(length, abs=0.1)
    assert (info.video_codec, info.audio_codec) == ("h264", "aac")


def test_a_sound_plays_beside_its_picture_and_an_image_for_a_moment(tmp_path: Path) -> None:
    make_file(tmp_path / "sound.flac", KINDS["sound.flac"])
    make_still(tmp_path / "still.png", "png")
    still = encode_tile(tmp_path / "still.png", 0, 60)
    assert probe(base64.b64decode(still.video.split(",")[1])).duration_seconds < 0.2
    player = encode_tile(str(tmp_path / "sound.flac"), 0.5, 1.0)
    assert player.sound.startswith("data:audio/wav")
    assert [picture[:14] for picture in player.pictures] == ["data:image/png"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")
def test_a_browser_plays_the_page(built: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run("search", built, "a red ring", "--html", page, "-k", "2") == 0
    # the page allows no scripts; for this test it does
    watch = (
        "<script>addEventListener('load', () => setTimeout(() => { document.title = "
        "[...document.querySelectorAll('video')].map((v) => `${v.readyState} ${v.error}`); "
        "}, 3000))</script>"
    )
    text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text())
    page.write_text(text.replace("</html>", f"{watch}</html>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync"]
    command += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=8000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert re.search("<title>(.*?)</title>", done.stdout)[1] == "4 null,4 null"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent", "a dog"], "there is no index in absent: make one with `vatt index"),
        (["INDEX", "zebra giraffe"], "knows none of the words 'zebra giraffe'"),
        (["INDEX", "!?"], "holds no word"),
        (["INDEX", "mistyped.mp4"], "mistyped.mp4: there is no such file.*--text"),
        (["INDEX", "NOTES"], "notes.txt is a text file, no media.*--text"),
        (["INDEX", "a dog", "--space", "va"], "text cannot be compared.*puts text into vt"),
        (["INDEX", "a dog", "--space", "joint"], "has no space joint, it has .*video_vt"),
        (["AUDIO", "a dog", "--modality", "video"], "has no video, it has audio_va"),
        (["AUDIO", "a dog"], "text cannot be compared with .*the index has audio_va"),
        (["INDEX", "a dog", "--query-modality", "audio"], "--query-modality is for files"),
        (["INDEX", "a dog", "--file"], "the query a dog: there is no such file"),
    ],
)
def test_a_search_that_cannot_be_done_is_one_sentence(
    built: Path,
    features: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments,
    message,
) -> None:
    (tmp_path / "notes.txt").write_text("no media " * 100)
    if "AUDIO" in arguments:
        Index.build(features, tmp_path / "a", IndexOptions(modalities=("audio",), spaces=("va",)))
    places = {"INDEX": built, "AUDIO": tmp_path / "a", "NOTES": tmp_path / "notes.txt"}
    assert run("search", *(places.get(one, one) for one in arguments)) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert said.count("\n") == 1


def test_an_index_that_cannot_be_read_is_named(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for change, message in (
        ({"format_version": 99}, "is an index of version 99, this vatt reads 1"),
        ({"data": "data-9"}, ".npy is missing or damaged"),
    ):
        copy = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(built, copy)
        (copy / "index.json").write_text(json.dumps(read_index_json(built) | change))
        assert run("search", copy, "a dog") == 2
        assert message in capsys.readouterr().err
    (copy / "index.json").write_text("{")
    assert run("search", copy, "a dog") == 2
    assert "index.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("video_vt.windows.npy", lambda places: places + 10**9),
        ("video_vt.windows.npy", lambda places: places[1:]),
        ("video_vt.npy", lambda matrix: matrix.astype(np.float64)),
        ("video_vt.npy", lambda matrix: matrix[:, None]),
        ("windows.npy", lambda windows: windows[:1]),
        ("sources.npy", lambda ends: ends[:0]),
    ],
)
def test_an_index_whose_parts_do_not_fit_together_is_refused(
    built: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Callable[[np.ndarray], np.ndarray],
) -> None:
    shutil.copytree(built, tmp_path / "copy")
    path = next((tmp_path / "copy").glob(f"data-*/{name}"))
    np.save(path, change(np.load(path)))
    assert run("search", tmp_path / "copy", "a dog") == 2
    said = capsys.readouterr().err
    assert re.search(r"is damaged: make one with `vatt index", said)
    assert said.count("\n") == 1


def test_a_matrix_that_claims_more_rows_than_its_file_has_is_refused(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(built, tmp_path / "copy")
    path = next((tmp_path / "copy").glob("data-*/video_vt.npy"))
    with path.open("r+b") as file:
        shape = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 12)}
        np.lib.format.write_array_header_1_0(file, shape)
    assert run("search", tmp_path / "copy", "a dog") == 2
    assert "video_vt.npy is missing or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_an_index_whose_windows_have_no_time_is_refused(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: float
) -> None:
    shutil.copytree(built, tmp_path / "copy")
    path = next((tmp_path / "copy").glob("data-*/windows.npy"))
    windows = np.load(path)
    windows["end_seconds"][-1] = seconds
    np.save(path, windows)
    assert run("search", tmp_path / "copy", "a dog") == 2
    said = capsys.readouterr().err
    assert f"{path} is damaged: make one with `vatt index" in said
    assert said.count("\n") == 1


def test_features_that_do_not_go_together_are_refused_by_name(
    features: Path, media: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path, message: str, *more: str) -> None:
        assert run("index", folder, "-o", tmp_path / "index", *more) == 2
        said = capsys.readouterr().err
        assert re.search(message, said)
        assert said.count("\n") == 1
        assert not (tmp_path / "index" / "index.json").exists()
        assert not list((tmp_path / "index").glob("data-*"))

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "absent", "there is no folder .*absent")
    refused(tmp_path / "empty", "empty holds no features: make features with `vatt extract")
    refused(features, "have no joint, they have audio_va", "--space", "joint")
    mixed = tmp_path / "mixed"
    shutil.copytree(features, mixed)
    run("extract", media / "plain.mp4", "-o", mixed / "x", "--model", model, "--workers", "0")
    refused(mixed, r"x/plain.mp4.npz was made with another hop_seconds than .*0.mp4.npz: run")
    shutil.rmtree(mixed / "x")
    (mixed / "x").mkdir()
    shutil.copy(mixed / "plain.mp4.npz", mixed / "x" / "plain.mp4.npz")
    refused(mixed, r"x/plain.mp4.npz and .*/plain.mp4.npz both hold plain.mp4: delete one")
    (mixed / "x" / "plain.mp4.npz").write_bytes(b"no features")
    refused(mixed, r"x/plain.mp4.npz cannot be used")
    Features.load(features / "plain.mp4.npz").save(mixed / "x" / "other.safetensors")
    refused(mixed, "holds features as npz and as safetensors: keep one")
    own = tmp_path / "own"
    own.mkdir()
    FeatureExtractor.from_pretrained(model).extract(media / "plain.mp4").save(own / "a.npz")
    refused(own, "does not say with which model it was made")
    assert extract(media, tmp_path / "tokens", model, "--tokens", "--space", "none") == 0
    refused(tmp_path / "tokens", "holds tokens, an index is of one vector a window")
    assert run("index", features, "-o", features) == 2
    assert "holds other things" in capsys.readouterr().err
    assert run("index", features, "-o", features / "plain.mp4.npz") == 2
    assert "is a file: name a folder" in capsys.readouterr().err


def test_a_whole_number_of_hits_is_asked_for(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search", built, "a dog", "-k", "0") == 2
    assert "must be at least 1, got 0" in capsys.readouterr().err


def test_features_of_the_backbone_are_searched_by_their_own_modality(
    media: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract(media, tmp_path / "features", model, "--space", "none") == 0
    assert run("index", tmp_path / "features", "-o", tmp_path / "index") == 0
    said = answer(capsys, tmp_path / "index", media / "plain.mp4", "--per-file")
    assert (said["array"], said["hits"][0]["source"]) == ("video", "plain.mp4")
    assert run("search", tmp_path / "index", "a dog") == 2
    assert "text cannot be compared" in capsys.readouterr().err


def test_rows_are_written_one_after_the_other(tmp_path: Path) -> None:
    with closing(RowWriter(tmp_path / "a.npy", np.float32, (3,))) as writer:
        for number in range(200):
            writer.add(np.full((2, 3), number))
    made = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert made.shape == (400, 3)
    assert made[::2, 1].tolist() == list(range(200))


def zeros_in_little_space(path: Path) -> None:
    """A row of 80 MB in one packed page."""
    table = pyarrow.table({"source": [b"0" * 80_000_000]})
    parquet.write_table(table, path, compression="zstd")


def rows_in_little_space(path: Path) -> None:
    """20 million rows in a few bytes."""
    parquet.write_table(pyarrow.table({"video_vt": np.zeros(20_000_000, np.int8)}), path)


def wide_vectors_in_no_space(path: Path) -> None:
    """A missing vector of 4 GB."""
    few, many = (pyarrow.list_(pyarrow.float32(), width) for width in (2, 1 << 30))
    parquet.write_table(pyarrow.table({"video_vt": pyarrow.array([None], few)}), path)
    schemas = (pyarrow.schema([("video_vt", kind)]).serialize() for kind in (few, many))
    stored, changed = (base64.b64encode(one.to_pybytes()) for one in schemas)
    assert stored in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(stored, changed))


@pytest.mark.parametrize(
    "write", [zeros_in_little_space, rows_in_little_space, wide_vectors_in_no_space]
)
def test_parquet_that_would_fill_the_memory_is_refused(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "part-0.parquet")
    assert (tmp_path / "part-0.parquet").stat().st_size < 100_000
    with pytest.raises(UserError, match=r"part-0.parquet is refused: .* bytes of memory, and at"):
        next(iter(FeatureFolder(tmp_path)))


def test_parquet_is_read_in_pieces_that_do_not_split_a_source_in_two(
    media: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert extract(media, tmp_path / "features", model, "--format", "parquet") == 0
    whole = Index.build(tmp_path / "features", tmp_path / "whole")[0]
    monkeypatch.setattr("vatt.features.folders.BATCH_ROWS", 5)
    assert max(len(one) for _, one in FeatureFolder(tmp_path / "features")) <= 5
    pieces, report = Index.build(tmp_path / "features", tmp_path / "pieces")
    assert report.num_sources == 7
    for name in whole.arrays:
        assert np.array_equal(whole._files.matrix(name), pieces._files.matrix(name))
    assert whole.search(text="a dog", k=50) == pieces.search(text="a dog", k=50)
