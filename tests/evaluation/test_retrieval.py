"""Zero-shot retrieval over windows: against loops, with ties and masks, and in two processes."""

import json
import os
import shutil
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_processes import run_ranks

import vatt
from vatt import ShardSet, Tokenizer, probe, save_model
from vatt.cli import main
from vatt.encoders.loading import load_encoder
from vatt.encoders.own import VATTEncoder
from vatt.errors import UserError
from vatt.evaluation import clip_views
from vatt.evaluation.clip_views import ItemViews, ViewPlan, read_item, read_items
from vatt.evaluation.embedding_table import EmbeddingTable
from vatt.evaluation.retrieval import GRID, embedding_ranks, on_grid, retrieval
from vatt.evaluation.zero_shot_retrieval import average_windows, embed_items, evaluation_plan
from vatt.models.checkpoint import load_model
from vatt.network.model import VATT
from vatt.preprocess.evaluation_views import read_audio_views, read_video_views
from vatt.sets.items import Item
from vatt.sets.retrieval import read_shard_set

FEW = 9


@pytest.fixture(scope="module")
def items(tiny_shards: Path) -> tuple[Item, ...]:
    return read_shard_set(tiny_shards / "train").items[:FEW]


def place(scores, wanted):
    """Mean place over all orders of what ties."""
    better = sum(score > scores[wanted] for score in scores)
    return better + (sum(score == scores[wanted] for score in scores) - 1) / 2


def summary(ranks, queries, candidates):
    ranks = np.array(ranks, dtype=np.float64)
    recalls = {f"R@{k}": 100 * float(np.mean(ranks <= k - 1)) for k in (1, 5, 10)}
    expected = {**recalls, "MedR": float(np.median(ranks)) + 1, "MeanR": float(ranks.mean()) + 1}
    expected |= {"num_queries": queries, "num_candidates": candidates}
    return pytest.approx(expected, abs=1e-6)


def windows_table(video, audio, text, masks, number):
    """The table of windows `[N, W, D]` by one of the two averages."""
    video_mask, audio_mask, text_mask = masks
    unit = on_grid(torch.nn.functional.normalize(text.double(), dim=-1))
    seen, heard = average_windows(video)[number], average_windows(audio)[number]
    return EmbeddingTable(
        keys=tuple(map(str, range(len(video)))),
        video_va=seen * video_mask[:, None],
        audio_va=heard * audio_mask[:, None],
        video_vt=seen * video_mask[:, None],
        audio_vt=heard * audio_mask[:, None],
        text_vt=unit * text_mask[..., None],
        video_mask=video_mask,
        audio_mask=audio_mask,
        text_mask=text_mask,
    )


def cosine(a, b):
    return float(a @ b / a.norm() / b.norm())


def test_both_averages_equal_a_loop_over_windows_with_ties_and_masks():
    generator = torch.Generator().manual_seed(0)
    clips, windows, width, captions = 14, 3, 6, 2
    video = torch.randn(clips, windows, width, generator=generator).double()
    video[5], video[9] = video[2], video[6].flip(0)  # the same windows: these clips tie
    audio = torch.randn(clips, windows, width, generator=generator).double()
    audio[7], audio[8] = audio[1], audio[4]
    text = torch.randn(clips, captions, width, generator=generator).double()
    text[6] = text[10]
    video_mask, audio_mask = torch.ones(2, clips, dtype=torch.bool)
    text_mask = torch.ones(clips, captions, dtype=torch.bool)
    video_mask[4] = audio_mask[3] = text_mask[2, 1] = text_mask[12] = False
    masks = (video_mask, audio_mask, text_mask)

    def mean_of_cosines(a, b):
        return round(float(np.mean([cosine(x, y) for x in a for y in b])), 9)

    def cosine_of_means(a, b):
        return round(cosine(a.mean(dim=0), b.mean(dim=0)), 9)

    for number, score in enumerate((cosine_of_means, mean_of_cosines)):
        result = retrieval(windows_table(video, audio, text, masks, number))
        seen = [i for i in range(clips) if video_mask[i]]
        heard = [i for i in range(clips) if audio_mask[i]]
        t2v, v2t, t2a, a2t = [], [], [], []
        for slot in range(captions):
            written = [i for i in range(clips) if text_mask[i, slot]]
            for i in set(seen) & set(written):
                caption = text[i, slot][None]
                t2v.append(place([score(video[j], caption) for j in seen], seen.index(i)))
                scores = [score(video[i], text[j, slot][None]) for j in written]
                v2t.append(place(scores, written.index(i)))
            for i in set(heard) & set(written):
                caption = text[i, slot][None]
                t2a.append(place([score(audio[j], caption) for j in heard], heard.index(i)))
                scores = [score(audio[i], text[j, slot][None]) for j in written]
                a2t.append(place(scores, written.index(i)))
        both = sorted(set(seen) & set(heard))
        a2v = [place([score(video[j], audio[i]) for j in seen], seen.index(i)) for i in both]
        v2a = [place([score(video[i], audio[j]) for j in heard], heard.index(i)) for i in both]
        assert any(rank % 1 for rank in t2v)
        assert any(rank % 1 for rank in a2v)
        # 13 clips have a picture, 13 a sound, 13 the first caption, 12 the second
        assert result["text_to_video"] == summary(t2v, 23, 13)
        assert result["video_to_text"] == summary(v2t, 12, 23 / (12 / 13 + 11 / 12))
        assert result["audio_to_video"] == summary(a2v, 12, 13)
        assert result["video_to_audio"] == summary(v2a, 12, 13)
        assert result["text_to_audio"] == summary(t2a, 23, 13)
        assert result["audio_to_text"] == summary(a2t, 12, 23 / (12 / 13 + 11 / 12))


def test_embeddings_are_averaged_before_they_are_normalised():
    windows = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    first, second = average_windows(windows)
    assert first[0].tolist() == pytest.approx([3 / 10**0.5, 1 / 10**0.5], abs=1e-7)
    assert second[0].tolist() == [0.5, 0.5]


def test_products_on_the_grid_are_exact_in_any_order():
    generator = torch.Generator().manual_seed(2)
    windows = torch.randn(40, 3, 512, generator=generator)
    order = torch.randperm(512, generator=generator)
    for rows in average_windows(windows):
        assert (rows / GRID).frac().count_nonzero() == 0
        assert (rows[:, order] @ rows[:, order].T).equal(rows @ rows.T)
    unit = torch.nn.functional.normalize(windows[:, 0].double(), dim=-1)
    assert (on_grid(unit) - unit).abs().max() <= GRID / 2


def test_equal_candidates_tie_to_the_bit_wherever_they_stand():
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(33, 512, generator=generator)
    one = torch.randn(1, 512, generator=generator)
    candidates = on_grid(torch.nn.functional.normalize(one, dim=-1)).expand(1001, 512).contiguous()
    target = torch.arange(33)
    queries = on_grid(torch.nn.functional.normalize(queries, dim=-1))
    for chunk in (1, 5, 33):
        ranks = embedding_ranks(queries, candidates, target, queries_per_chunk=chunk)
        assert ranks.unique().tolist() == [500.0]


def test_tables_hold_what_the_model_makes_of_each_window(model_folder, items):
    encoder = load_encoder(model_folder, device="cpu")
    model, tokenizer = encoder.model, encoder.tokenizer
    plan = evaluation_plan(encoder, num_windows=3)
    tables = embed_items(encoder, items, plan, batch_size=4)
    assert tables.embeddings.keys == tuple(item.key for item in items)
    assert tables.faults == ()
    row = next(i for i, item in enumerate(items) if probe(item.source).has_audio)
    video = read_video_views(items[row].source, model.config.video, num_windows=3, num_crops=1)
    audio = read_audio_views(items[row].source, model.config.audio, num_windows=3)
    with torch.no_grad():
        seen, heard = model.embed_video(video), model.embed_audio(audio)
        said = model.embed_text(tokenizer.encode(list(items[row].captions), 16))["vt"]
    for name, expected in (("va", seen["va"]), ("vt", seen["vt"])):
        mean = torch.nn.functional.normalize(expected.mean(dim=0), dim=0).double()
        assert torch.allclose(getattr(tables.embeddings, f"video_{name}")[row], mean, atol=1e-5)
        cosines = torch.nn.functional.normalize(expected, dim=1).mean(dim=0).double()
        assert torch.allclose(
            getattr(tables.similarities, f"video_{name}")[row], cosines, atol=1e-5
        )
    mean = torch.nn.functional.normalize(heard["va"].mean(dim=0), dim=0).double()
    assert torch.allclose(tables.embeddings.audio_va[row], mean, atol=1e-5)
    unit = torch.nn.functional.normalize(said, dim=1).double()
    assert torch.allclose(tables.embeddings.text_vt[row, : len(said)], unit, atol=1e-5)
    assert tables.embeddings.text_mask.sum(dim=1).tolist() == [len(i.captions) for i in items]
    silent = [probe(item.source).has_audio for item in items]
    assert tables.embeddings.audio_mask.tolist() == silent


def evaluate_share(model_folder, shards):
    encoder = load_encoder(model_folder, device="cpu")
    items = read_shard_set(shards).items[:FEW]
    tables = embed_items(encoder, items, evaluation_plan(encoder, num_windows=2))
    return {"keys": list(tables.embeddings.keys), "metrics": tables.metrics()}


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_clips_and_count_each_once(
    model_folder, tiny_shards, tmp_path, world_size
):
    assert FEW % world_size  # some have fewer clips than others
    alone = evaluate_share(model_folder, tiny_shards / "train")
    together = run_ranks(evaluate_share, world_size, tmp_path, model_folder, tiny_shards / "train")
    assert len(alone["keys"]) == len(set(alone["keys"])) == FEW
    for one in together:
        assert one["keys"] == alone["keys"]
        for averaging, directions in alone["metrics"].items():
            for direction, row in directions.items():
                assert one["metrics"][averaging][direction] == pytest.approx(row, abs=1e-9)


def test_a_clip_of_a_long_file_has_its_windows_within_its_times(tiny_corpus):
    path = next(iter(sorted((tiny_corpus / "train").glob("*.mp4"))))
    video = replace(vatt.preset("tiny").video, num_frames=2, frame_rate=10.0)
    plan = ViewPlan(video=video, audio=None, num_windows=2)
    end = probe(path).duration_seconds
    part = Item(key="a", source=str(path), place="", start_seconds=0.4, end_seconds=0.9)
    read = read_item((part, plan)).video
    first = read_video_views(
        path, video, num_windows=1, num_crops=1, start_seconds=0.4, end_seconds=0.6
    )
    last = read_video_views(
        path, video, num_windows=1, num_crops=1, start_seconds=0.7, end_seconds=0.9
    )
    assert read.shape[0] == 2
    assert (read[0] == first[0].numpy()).all()
    assert (read[1] == last[0].numpy()).all()
    assert (read[0] != read[1]).any()
    open_end = read_item((replace(part, end_seconds=end + 9), plan)).video
    assert (open_end == read_item((replace(part, end_seconds=None), plan)).video).all()


def write_sound(path: Path, waveform: np.ndarray, sample_rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((waveform * 32767).astype("<i2").tobytes())
    return path


def test_a_file_of_sound_alone_has_its_windows_within_its_times(tmp_path):
    config = vatt.preset("tiny")
    audio = replace(config.audio, num_samples=1024)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * audio.sample_rate)
    path = write_sound(tmp_path / "a.wav", noise, audio.sample_rate)
    plan = ViewPlan(video=config.video, audio=audio, num_windows=2)
    part = Item(key="a", source=str(path), place="", start_seconds=1.0, end_seconds=2.0)
    read = read_item((part, plan))
    assert read.video is None
    assert read.fault == ""
    rate = audio.sample_rate
    assert np.allclose(read.audio[0], noise[rate : rate + 1024], atol=1e-3)
    assert np.allclose(read.audio[1], noise[2 * rate - 1024 : 2 * rate], atol=1e-3)
    silent = read_item((part, replace(plan, audio=None)))
    assert silent.fault == "has no picture"


def test_files_that_cannot_be_read_are_named_and_left_out(
    model_folder, items, tmp_path, tiny_corpus
):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    late = Item(key="late", source=items[1].source, place="", start_seconds=900, captions=("a",))
    bad = Item(key="bad", source=str(broken), place="", captions=("a",))
    encoder = load_encoder(model_folder, device="cpu")
    plan = evaluation_plan(encoder, num_windows=1)
    mixed = [items[0], bad, late, items[1]]
    pictures_and_sound = encoder.media_modalities
    tables = embed_items(encoder, mixed, plan, modalities=pictures_and_sound, num_workers=1)
    assert tables.embeddings.keys == (items[0].key, items[1].key)
    assert [fault.where for fault in tables.faults] == ["bad", "late"]
    assert "ends at" in tables.faults[1].reason
    assert tables.embeddings.text_vt is None
    with pytest.raises(UserError, match="none of 1 clips can be read"):
        embed_items(encoder, [bad], plan)


@pytest.mark.slow
def test_reading_ahead_in_processes_gives_the_same_views(items):
    config = vatt.preset("tiny")
    plan = ViewPlan(video=config.video, audio=config.audio, num_windows=2)
    here, there = (list(read_items(items[:3], plan, num_workers=n)) for n in (0, 2))
    for one, other in zip(here, there, strict=True):
        assert isinstance(other, ItemViews)
        assert (one.video == other.video).all()
        assert (one.audio is None) == (other.audio is None)
        assert one.audio is None or (one.audio == other.audio).all()


@pytest.mark.slow
def test_few_clips_are_read_ahead_while_a_file_hangs(items, tmp_path, monkeypatch):
    monkeypatch.setattr(clip_views, "LIMIT_SECONDS", 2.0)
    os.mkfifo(tmp_path / "waits.mp4")  # opening it waits for ever
    waits = Item(key="waits", source=str(tmp_path / "waits.mp4"), place="")
    taken = []

    class Clips(list):
        def __iter__(self):
            for item in super().__iter__():
                taken.append(item)
                yield item

    clips = Clips([waits, *[items[0]] * 40])
    views = read_items(clips, ViewPlan(video=vatt.preset("tiny").video, audio=None), num_workers=2)
    assert "no answer within 2 s" in next(views).fault
    assert len(taken) <= 5  # two for each process, and the one that takes the place of the first
    views.close()


def test_a_model_without_common_spaces_is_refused(items):
    model = VATT(vatt.as_classifier(vatt.preset("tiny"), "video", num_classes=3)).eval()
    with pytest.raises(UserError, match="no common spaces"):
        embed_items(VATTEncoder(model, None, "cpu"), items, evaluation_plan(model.config))


def test_the_command_prints_a_table_and_writes_everything_down(
    model_folder, tiny_shards, tmp_path, capsys
):
    out = tmp_path / "out"
    arguments = [str(model_folder), "--data", str(tiny_shards / "train"), "--out", str(out)]
    options = ["--windows", "2", "--workers", "0", "--device", "cpu", "--seed", "7"]
    assert main(["evaluate", "retrieval", *arguments, *options]) == 0
    printed = capsys.readouterr().out
    assert "retrieval on 24 of 24 clips listed: 24 with video, " in printed
    texts = sum(bool(item.captions) for item in read_shard_set(tiny_shards / "train").items)
    assert f" with audio, {texts} with text\n" in printed
    assert "similarities: every window is compared" in printed
    content = json.loads((out / "results.json").read_text())
    assert content["num_items"] == content["num_listed"] == 24
    assert content["protocol"]["num_windows"] == 2
    assert content["protocol"]["frame_rate"] == vatt.preset("tiny").video.frame_rate
    assert content["seed"] == 7
    assert len(content["model"]["sha256"]) == 64
    assert content["environment"].keys() >= {"git_commit", "torch", "command"}
    assert "evaluate retrieval" in content["environment"]["command"]
    rows = content["metrics"]
    assert len(rows) == 12
    columns = {"R@1", "R@5", "R@10", "MedR", "MeanR", "num_queries", "num_candidates"}
    assert all(row.keys() == columns for row in rows.values())
    line = next(line for line in printed.splitlines() if line.startswith("video_to_text, emb"))
    row = rows["video_to_text, embeddings"]
    assert (row["num_queries"], texts) == (texts, int(line.split()[-3]))
    assert float(line.split()[-1]) == pytest.approx(100 / row["num_candidates"], rel=0.01)
    expected = evaluate_all(model_folder, tiny_shards / "train")
    assert rows["text_to_video, similarities"] == expected["similarities"]["text_to_video"]
    for name in rows:
        assert name in printed


@pytest.mark.slow
def test_the_command_takes_another_tokenizer_and_pieces_of_clips(
    model_folder, tiny_shards, tmp_path
):
    shards, out = tiny_shards / "train", tmp_path / "out"
    bare = tmp_path / "model"
    shutil.copytree(model_folder, bare, ignore=shutil.ignore_patterns("tokenizer.json"))
    other = Tokenizer.train([*ShardSet(shards).captions()][:5], 256)
    other.save(tmp_path / "other.json")
    options = ["--windows", "2", "--workers", "0", "--device", "cpu", "--clips", "segments"]
    words = ["--tokenizer", str(tmp_path / "other.json")]
    arguments = [str(bare), "--data", str(shards), "--out", str(out), *options]
    assert main(["evaluate", "retrieval", *arguments, *words]) == 0
    content = json.loads((out / "results.json").read_text())
    model, items = load_model(bare), read_shard_set(shards, clips="segments").items
    assert content["num_items"] == len(items) > 24
    plan = evaluation_plan(model.config, num_windows=2)
    encoder = VATTEncoder(model, other, "cpu")
    expected = embed_items(encoder, items, plan).metrics()["similarities"]
    assert content["metrics"]["text_to_video, similarities"] == expected["text_to_video"]
    of_its_own = load_encoder(model_folder, device="cpu")
    unlike = embed_items(of_its_own, items, plan).metrics()["similarities"]
    assert unlike["text_to_video"] != expected["text_to_video"]


def evaluate_all(model_folder, shards):
    encoder = load_encoder(model_folder, device="cpu")
    items = read_shard_set(shards).items
    return embed_items(encoder, items, evaluation_plan(encoder, num_windows=2)).metrics()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--windows", "0"], "--num-windows: must be at least 1"),
        (["--workers", "-1"], "--workers: must be at least 0"),
        (["--frame-rate", "0"], "--frame-rate: must be positive"),
        (["--videos", "."], "is no .csv or .json"),
        (["--split", "test"], "is no .csv or .json"),
    ],
)
def test_options_that_cannot_work_are_named(model_folder, tiny_shards, options, message, capsys):
    arguments = [str(model_folder), "--data", str(tiny_shards / "train"), *options]
    assert main(["evaluate", "retrieval", *arguments]) == (2 if ": must" in message else 1)
    assert message in capsys.readouterr().err


def test_a_model_without_its_words_is_refused(model_folder, tiny_shards, tmp_path, capsys):
    save_model(load_model(model_folder), tmp_path / "a" / "b" / "c" / "wordless")
    model = tmp_path / "a" / "b" / "c" / "wordless"
    data = ["--data", str(tiny_shards / "train")]
    assert main(["evaluate", "retrieval", str(model), *data]) == 1
    assert "give --tokenizer" in capsys.readouterr().err
