"""Evaluation of models of others: their spaces, whole pictures, and results without an arrangement.

Most tests use a small model of its own kind: several spaces, of which no modality is in all. The
commands run on CLIP, CLAP and PE-AV.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from foreign_models import save_clap, save_clip, save_pe_av, skip_without
from labelled_media import write_csv, write_sounds
from torch import Tensor, nn

from vatt import FeatureExtractor, probe
from vatt.cli import main
from vatt.config.geometry import AudioWindow, VideoWindow
from vatt.encoders.encoder import Encoder
from vatt.errors import UserError
from vatt.evaluation.embedding_table import similarities
from vatt.evaluation.frozen_features import extract_features
from vatt.evaluation.results import Results, results_table, write_results
from vatt.evaluation.retrieval import retrieval
from vatt.evaluation.zero_shot_classification import embed_classes, score_classes
from vatt.evaluation.zero_shot_retrieval import embed_items, evaluation_plan
from vatt.sets.items import Item
from vatt.sets.retrieval import read_shard_set

SPACES = {"video": ("va", "vt"), "audio": ("va", "at"), "text": ("vt", "at", "avt")}
WIDTHS = {"va": 5, "vt": 6, "at": 7, "avt": 8, None: 9}  # no two are equal: none can be mistaken


class Projections(nn.Module):
    """A linear map from a few statistics of an input into each space."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleDict(
            {
                f"{modality}_{space}": nn.Linear(4, WIDTHS[space])
                for modality, spaces in SPACES.items()
                for space in (*spaces, None)
            }
        )


class SmallEncoder(Encoder):
    """A model with the spaces of PE-AV that takes pictures of any size."""

    modalities = ("video", "audio", "text")
    video = VideoWindow(num_frames=3, frame_rate=6.0)
    audio = AudioWindow(num_samples=4_000, sample_rate=8_000)
    max_tokens = 10

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(Projections(), "cpu", "float32")
        self.shapes: set[tuple[int, ...]] = set()  # of pictures

    def spaces(self, modality: str) -> tuple[str, ...]:
        return SPACES[modality]

    def width(self, modality: str, space: str | None) -> int:
        return WIDTHS[space]

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def encode(
        self, modality: str, rows: Sequence[Any], spaces: Sequence[str | None]
    ) -> dict[str | None, Tensor]:
        if modality == "video":
            self.shapes |= {tuple(row.shape) for row in rows}
            moments = [
                torch.cat([row.float().mean((0, 1, 2)) / 255, row.new_ones(1)]) for row in rows
            ]
        elif modality == "audio":
            moments = [torch.stack([*row.abs().topk(3).values, row.std()]) for row in rows]
        else:
            moments = [torch.tensor([float(ord(c)) for c in f"{row:>4}"[:4]]) / 100 for row in rows]
        values = torch.stack(moments)
        return {space: self.model.maps[f"{modality}_{space}"](values) for space in spaces}

    def digest(self) -> str:
        return "5ma11"


@pytest.fixture(scope="module")
def items(tiny_shards: Path) -> tuple[Item, ...]:
    heard = [i for i in read_shard_set(tiny_shards / "train").items if probe(i.source).has_audio]
    return tuple(heard[:6])


def test_each_direction_is_measured_in_the_space_that_both_modalities_share(items):
    encoder = SmallEncoder()
    table = embed_items(encoder, items, evaluation_plan(encoder, num_windows=2)).embeddings
    assert (table.audio_vt, table.video_va.shape, table.audio_at.shape) == (None, (6, 5), (6, 7))
    captions = [caption for item in items for caption in item.captions]
    for space, width in (("vt", 6), ("at", 7)):
        said = encoder.encode("text", captions, [space])[space].detach()
        stored = getattr(table, f"text_{space}")
        assert stored.shape[2] == width
        expected = F.normalize(said.double(), dim=-1)
        assert torch.allclose(stored[table.text_mask], expected, atol=1e-6)
    metrics = retrieval(table)
    assert len(metrics) == 6
    first = table.text_at[torch.arange(6), table.text_mask.int().argmax(dim=1)]
    assert similarities(table)["text_to_audio"].equal(first @ table.audio_at.T)
    found = (table.text_at[table.text_mask] @ table.audio_at.T).argmax(dim=1)
    hits = (found == table.text_mask.nonzero()[:, 0]).double().mean()
    assert metrics["text_to_audio"]["R@1"] == pytest.approx(100 * float(hits))


def test_whole_pictures_reach_a_model_that_scales_them_itself(items):
    encoder = SmallEncoder()
    plan = evaluation_plan(encoder, num_windows=2, modalities=["video"])
    embed_items(encoder, items[:2], plan, modalities=["video", "text"])
    sizes = {(info.height, info.width) for info in (probe(item.source) for item in items[:2])}
    assert len(sizes) == 2
    assert encoder.shapes == {(3, *size, 3) for size in sizes}
    assert plan.describe()["image_size"] is None


def test_sound_is_classified_in_the_space_of_sound_and_text(items):
    encoder = SmallEncoder()
    classes = embed_classes(encoder, ["dog", "cat"], modality="audio")
    assert classes.shape == (2, WIDTHS["at"])
    assert embed_classes(encoder, ["dog", "cat"], modality="video").shape == (2, WIDTHS["vt"])
    plan = evaluation_plan(encoder, num_windows=1, modalities=["audio"])
    clips, scores = score_classes(encoder, items, classes, plan, modality="audio")
    assert len(clips.items) == 6
    assert scores["embeddings"].shape == (6, 2)


def test_features_are_those_of_the_backbone(items, tmp_path):
    encoder = SmallEncoder()
    plan = evaluation_plan(encoder, num_windows=2, modalities=["audio"])
    features = extract_features(
        encoder, items, plan, modality="audio", digest=encoder.digest(), cache=tmp_path
    )
    assert features.values.shape == (6, 2, WIDTHS[None])


def test_a_model_whose_modalities_share_no_space_is_refused(items):
    encoder = SmallEncoder()
    encoder.modalities = ("text",)
    with pytest.raises(UserError, match="needs two modalities that share one"):
        embed_items(encoder, items, evaluation_plan(encoder))
    encoder.modalities = ("video", "audio")
    with pytest.raises(UserError, match="needs a model with text"):
        embed_classes(encoder, ["dog"], modality="audio")


def test_results_name_the_model_and_no_numbers_of_the_paper(tmp_path):
    encoder = SmallEncoder()
    row = {"R@10": 1.0, "MedR": 2.0}
    results = Results(
        task="retrieval",
        data_set="msrvtt-1k",
        protocol={},
        data={},
        num_items=3,
        num_listed=3,
        metrics={"text_to_video, embeddings": row},
    )
    content = json.loads(write_results(results, encoder, "org/small", tmp_path).read_text())
    weights = sum(weight.numel() for weight in encoder.model.parameters())
    assert content["model"] == {"source": "org/small", "sha256": "5ma11", "parameters": weights}
    assert content["published"] == []
    assert "(" not in results_table(results, None)


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    skip_without("transformers")
    return save_clip(tmp_path_factory.mktemp("clip"))


def evaluate(task: str, model: Path, out: Path, *options: object) -> dict[str, Any]:
    """Results of `vatt evaluate`."""
    arguments = [str(model), *map(str, options), "--out", str(out), "--workers", "0"]
    assert main(["evaluate", task, *arguments, "--device", "cpu"]) == 0
    return json.loads((out / "results.json").read_text())


def test_the_command_measures_retrieval_by_clip(clip_model, tiny_corpus, tmp_path, capsys):
    videos = sorted((tiny_corpus / "train").glob("*.mp4"))[:4]
    rows = [("", "", video.stem, f"a dog sees clip {video.stem}") for video in videos]
    header = ("key", "vid_key", "video_id", "sentence")  # of MSR-VTT 1k-A
    data = ["--data", write_csv(tmp_path / "msrvtt.csv", header, rows), "--videos"]
    content = evaluate(
        "retrieval", clip_model, tmp_path, *data, videos[0].parent, "--num-windows", 2
    )
    printed = capsys.readouterr().out
    directions = {row.partition(",")[0] for row in content["metrics"]}
    assert directions == {"text_to_video", "video_to_text"}
    assert content["num_with"].keys() == {"video", "text"}
    fx = FeatureExtractor.from_pretrained(clip_model, device="cpu", dtype="float32")
    assert content["model"]["sha256"] == fx.encoder.digest()
    assert "arrangement" not in content["model"]
    assert content["protocol"]["frame_rate"] == fx.encoder.video.frame_rate
    assert "retrieval on" in printed


def test_the_commands_classify_by_clip_at_its_own_rate(clip_model, tiny_corpus, tmp_path):
    paths = sorted((tiny_corpus / "train").glob("*.mp4"))[:6]
    rows = [(path.name, 1 + n // 3, "ab"[n % 2]) for n, path in enumerate(paths)]
    data = write_csv(tmp_path / "esc50.csv", ("filename", "fold", "category"), rows)
    where = ["--data", data, "--media", tiny_corpus / "train", "--modality", "video"]
    where += ["--num-windows", "1"]
    content = evaluate("zero-shot", clip_model, tmp_path / "zero-shot", *where)
    assert (content["data_set"], content["num_items"]) == ("esc50", 6)
    assert content["protocol"]["frame_rate"] == 2.0  # a VATT takes 12.5 of published sets
    options = ["--classifiers", "logistic"]
    content = evaluate("linear", clip_model, tmp_path / "linear", *where, *options)
    assert [*content["metrics"]][-1] == "logistic, mean of folds"
    assert list((tmp_path / "linear" / "features").iterdir())


def test_a_model_without_sound_is_refused_in_one_sentence(clip_model, tmp_path, capsys):
    rows = write_sounds(tmp_path / "sounds", 1)
    data = write_csv(tmp_path / "own.csv", ("file", "label"), rows)
    where = ["--data", data, "--media", tmp_path / "sounds", "--modality", "audio"]
    assert main(["evaluate", "zero-shot", str(clip_model), *map(str, where)]) == 1
    assert "this model has video and text, not audio" in capsys.readouterr().err


def test_sounds_are_classified_by_clap(tmp_path):
    skip_without("transformers")
    rows = write_sounds(tmp_path / "sounds", 2)
    data = write_csv(tmp_path / "own.csv", ("file", "label"), rows)
    where = ["--data", data, "--media", tmp_path / "sounds", "--modality", "audio"]
    content = evaluate("zero-shot", save_clap(tmp_path / "clap"), tmp_path / "out", *where)
    assert content["num_items"] == len(rows)


def test_pe_av_is_measured_in_all_directions(tiny_corpus, tmp_path):
    skip_without("transformers", "timm", "torchvision")
    clips = sorted((tiny_corpus / "train").glob("*.mp4"))
    heard = [clip for clip in clips if probe(clip).has_audio][:3]
    rows = [("", "", clip.stem, f"a dog sees clip {clip.stem}") for clip in heard]
    header = ("key", "vid_key", "video_id", "sentence")  # of MSR-VTT 1k-A
    data = ["--data", write_csv(tmp_path / "msrvtt.csv", header, rows), "--videos"]
    model, windows = save_pe_av(tmp_path / "pe-av"), ["--num-windows", "1"]
    content = evaluate("retrieval", model, tmp_path, *data, clips[0].parent, *windows)
    assert content["num_with"] == {"video": 3, "audio": 3, "text": 3}
    assert len({row.partition(",")[0] for row in content["metrics"]}) == 6
