"""The `mteb` library runs its tasks on our models: the scores are those of `FeatureExtractor`."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchcodec_stand_in
from foreign_models import save_clap
from media_files import KINDS, make_file
from tiny_models import make_model

from vatt import VATT, FeatureExtractor, MediaError, MtebModel, Tokenizer, preset, save_model
from vatt.cli import main
from vatt.errors import UserError
from vatt.evaluation.mteb_model import load_mteb
from vatt.evaluation.mteb_tasks import run_tasks
from vatt.evaluation.results import results_table
from vatt.models.checkpoint import weights_digest
from vatt.preprocess.arrays import audio_media

pytest.importorskip("mteb", reason="the mteb library is an extra: vatt[mteb]")
# mteb computes precision for classes that are never guessed too
pytestmark = pytest.mark.filterwarnings(
    "ignore:.* ill-defined:sklearn.exceptions.UndefinedMetricWarning"
)
CONFIG = preset("tiny")
TEXTS = ["a dog barks", "the red ring spins", "the cat", "a ring at the dog", "spins the red cat"]
LABELS = [0, 1, 2, 0, 1]  # of five files, among the first three texts


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    tokenizer = Tokenizer.train(["a dog barks at the cat", "the red ring spins"], 20)
    return FeatureExtractor(make_model(), tokenizer, device="cpu")


@pytest.fixture(scope="module")
def model(extractor: FeatureExtractor) -> MtebModel:
    return MtebModel(extractor, "vatt/tiny")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five files with picture and sound, of different lengths, so that they differ."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(5):
        seconds = 0.5 + 0.4 * index
        kind = dataclasses.replace(
            KINDS["mono.mp4"], video_seconds=seconds, audio_seconds=seconds, frame_rate=10 + index
        )
        make_file(folder / f"{index}.mp4", kind)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def sounds() -> list[bytes]:
    """Five WAV files of noise and tones at two rates."""
    random = np.random.default_rng(0)
    files = []
    for index, rate in enumerate((16_000, 44_100, 16_000, 8_000, 44_100)):
        seconds = np.arange(int(rate * (0.4 + 0.5 * index))) / rate
        tone = 0.4 * np.sin(2 * np.pi * 150 * (index + 1) * seconds)
        noise = random.normal(0, 0.02 * index, len(tone))
        files.append(audio_media((tone + noise).astype(np.float32), rate))
    return files


def column(values: list[Any], kind: str) -> Any:
    """A data set of one column `kind` of files or texts, decoded on access as mteb's are."""
    import datasets

    if kind == "text":
        return datasets.Dataset.from_dict({"text": values})
    rows = [
        {"bytes": value, "path": None}
        if isinstance(value, bytes)
        else {"bytes": None, "path": None if value is None else str(value)}
        for value in values
    ]
    feature = {"audio": datasets.Audio, "video": datasets.Video}[kind]
    made = datasets.Dataset.from_list([{kind: row if row != EMPTY else None} for row in rows])
    return made.cast_column(kind, feature())


EMPTY = {"bytes": None, "path": None}


def columns(**values: list[Any]) -> Any:
    from datasets import concatenate_datasets

    return concatenate_datasets([column(v, kind) for kind, v in values.items()], axis=1)


def encode(model: MtebModel, rows: Any, modalities: list[str]) -> torch.Tensor:
    metadata = SimpleNamespace(name="Task", modalities=modalities)
    encoded = model.encode(SimpleNamespace(dataset=rows), task_metadata=metadata, batch_size=3)
    return torch.as_tensor(encoded)


def retrieval_task(queries: dict[str, list], documents: dict[str, list], category: str) -> Any:
    """Query `i` asks for document `i`."""
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.mocks import MockVideoRetrievalT2V

    def with_ids(rows: Any, prefix: str) -> Any:
        return rows.add_column("id", [f"{prefix}{i}" for i in range(len(rows))])

    class Task(MockVideoRetrievalT2V):
        metadata = MockVideoRetrievalT2V.metadata.model_copy(
            update={
                "name": f"Own{category}",
                "category": category,
                "modalities": [*{**queries, **documents}],
            }
        )

        def load_data(self, **_: Any) -> None:
            split = RetrievalSplitData(
                queries=with_ids(columns(**queries), "q"),
                corpus=with_ids(columns(**documents), "d"),
                relevant_docs={f"q{i}": {f"d{i}": 1} for i in range(5)},
                top_ranked=None,
            )
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Task()


def zero_shot_task(kind: str, values: list[Any]) -> Any:
    from mteb.mocks import MockAudioZeroshotClassificationTask as Mock

    class Task(Mock):
        input_column_name = kind
        metadata = Mock.metadata.model_copy(
            update={"name": f"ZeroShot{kind}", "modalities": [kind, "text"]}
        )

        def load_data(self, **_: Any) -> None:
            self.dataset = {"test": column(values, kind).add_column("label", LABELS)}
            self.data_loaded = True

        def get_candidate_labels(self) -> list[str]:
            return TEXTS[:3]

    return Task()


def evaluated(model: Any, task: Any) -> dict[str, Any]:
    """Scores of a task by split."""
    results = load_mteb().evaluate(
        model, task, cache=None, show_progress_bar=False, co2_tracker=False
    )
    return results.task_results[0].scores


def scores(model: Any, task: Any) -> dict[str, float]:
    return evaluated(model, task)["test"][0]


def reciprocal_rank(similarity: torch.Tensor) -> float:
    """The mean over queries of 1 / rank, where query `i` asks for document `i`."""
    ranks = 1 + (similarity > similarity.diagonal()[:, None]).sum(dim=1)
    return float((1 / ranks).mean())


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_zero_shot_accuracy_is_that_of_direct_cosines(
    model: MtebModel,
    extractor: FeatureExtractor,
    sounds: list[bytes],
    videos: list[Path],
    modality: str,
) -> None:
    files = sounds if modality == "audio" else videos
    similarity = extractor.similarity(text=TEXTS[:3], **{modality: files}).T
    accuracy = float((similarity.argmax(dim=1) == torch.tensor(LABELS)).float().mean())
    assert scores(model, zero_shot_task(modality, files))["accuracy"] == pytest.approx(accuracy)


def test_retrieval_ranks_are_those_of_direct_cosines(
    model: MtebModel, extractor: FeatureExtractor, videos: list[Path], sounds: list[bytes]
) -> None:
    text = extractor.encode_text(TEXTS)
    heard, seen = (extractor.encode_audio(sounds, space=s) for s in ("vt", "va"))
    watched, of_sound = (extractor.encode_video(videos, space=s) for s in ("vt", "va"))
    fused = F.normalize(watched + heard, dim=-1)
    cases = {
        "t2a": ({"text": TEXTS}, {"audio": sounds}, text @ heard.T),
        "t2v": ({"text": TEXTS}, {"video": videos}, text @ watched.T),
        "v2a": ({"video": videos}, {"audio": sounds}, of_sound @ seen.T),
        "va2t": ({"video": videos, "audio": sounds}, {"text": TEXTS}, fused @ text.T),
        "t2t": ({"text": TEXTS}, {"text": TEXTS[::-1]}, text @ text.flip(0).T),
    }
    for category, (queries, documents, similarity) in cases.items():
        found = scores(model, retrieval_task(queries, documents, category))
        assert found["mrr_at_10"] == pytest.approx(reciprocal_rank(similarity), abs=1e-4), category


def test_classifier_sees_the_vectors_of_the_extractor(
    model: MtebModel, extractor: FeatureExtractor, sounds: list[bytes]
) -> None:
    from mteb.mocks import MockAudioClassificationCrossVal as Mock
    from sklearn.linear_model import LogisticRegression

    labels = [0, 1, 0, 1, 1]

    class Task(Mock):
        metadata = Mock.metadata.model_copy(update={"name": "Own", "eval_splits": ["test"]})
        is_cross_validation = False
        samples_per_label = 10
        n_experiments = 1

        def load_data(self, **_: Any) -> None:
            rows = column(sounds, "audio").add_column("label", labels)
            self.dataset = {"train": rows, "test": rows}
            self.data_loaded = True

    vectors = extractor.encode_audio(sounds).numpy()
    expected = LogisticRegression(max_iter=100).fit(vectors, labels).score(vectors, labels)
    assert scores(model, Task())["accuracy"] == pytest.approx(expected)


def test_vectors_are_those_of_the_files_at_their_own_rates(
    model: MtebModel, extractor: FeatureExtractor, videos: list[Path], sounds: list[bytes]
) -> None:
    heard = encode(model, column(sounds, "audio"), ["audio"])
    assert torch.allclose(heard, extractor.encode_audio(sounds, space="va"), atol=1e-6)
    watched = encode(model, column(videos, "video"), ["video"])
    assert torch.allclose(watched, extractor.encode_video(videos, space="vt"), atol=1e-6)
    few = MtebModel(extractor, "vatt/tiny", num_windows=1)
    one = encode(few, column(videos, "video"), ["video"])
    assert torch.allclose(one, extractor.encode_video(videos, num_windows=1), atol=1e-6)
    assert not torch.allclose(one, watched, atol=1e-3)


def test_waveforms_in_memory_and_images_are_encoded_too(
    model: MtebModel, extractor: FeatureExtractor
) -> None:
    from PIL import Image

    waveform = np.sin(np.arange(9000) / 20).astype(np.float32)
    pixels = np.random.default_rng(1).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    rows = [
        {"audio": {"array": waveform, "sampling_rate": 9000}, "image": Image.fromarray(pixels)},
        {"audio": {"array": waveform[:5000], "sampling_rate": 16_000}, "image": None},
    ]

    class Rows(list):
        features = ("audio", "image")

    both = encode(model, Rows(rows), ["audio", "image"])
    first = extractor.encode_audio(waveform, sample_rate=9000, space="va")
    picture = extractor.encode_video(pixels, space="va")
    assert torch.allclose(both[:1], F.normalize(first + picture, dim=-1), atol=1e-6)
    second = extractor.encode_audio(waveform[:5000], sample_rate=16_000, space="va")
    assert torch.allclose(both[1:], second, atol=1e-6)


def test_a_row_that_lacks_a_modality_counts_with_the_others(
    model: MtebModel, extractor: FeatureExtractor, videos: list[Path], sounds: list[bytes]
) -> None:
    rows = columns(video=[None, *videos[1:]], audio=[*sounds[:4], None])
    vectors = encode(model, rows, ["video", "audio", "text"])
    assert torch.allclose(vectors[:1], extractor.encode_audio(sounds[0], space="vt"), atol=1e-6)
    assert torch.allclose(vectors[4:], extractor.encode_video(videos[4], space="vt"), atol=1e-6)


def test_texts_without_a_known_word_are_like_nothing(model: MtebModel) -> None:
    with pytest.warns(UserWarning, match="holds no word"):
        vectors = encode(model, column(["a dog", "…", "the cat"], "text"), ["text"])
    assert vectors[1].abs().sum() == 0
    assert torch.allclose(vectors[[0, 2]].norm(dim=1), torch.ones(2))
    assert model.similarity(vectors, vectors)[1].abs().sum() == 0


def test_a_file_that_cannot_be_read_stops_or_is_like_nothing(
    model: MtebModel, extractor: FeatureExtractor, sounds: list[bytes]
) -> None:
    rows = column([sounds[0], b"no media" * 20, sounds[1]], "audio")
    with pytest.raises(MediaError):
        encode(model, rows, ["audio"])
    tolerant = MtebModel(extractor, "vatt/tiny", on_error="skip")
    with pytest.warns(UserWarning, match="skipped"):
        vectors = encode(tolerant, rows, ["audio"])
    assert vectors[1].abs().sum() == 0
    assert torch.allclose(vectors[[0, 2]], extractor.encode_audio(sounds[:2]), atol=1e-6)
    assert tolerant.mteb_model_meta.experiment_kwargs == {"on_error": "skip"}


def test_a_path_with_a_scheme_is_opened_where_it_points(
    model: MtebModel, extractor: FeatureExtractor, sounds: list[bytes]
) -> None:
    import fsspec

    with fsspec.open("memory://sound.wav", "wb") as file:
        file.write(sounds[0])
    vectors = encode(model, column(["memory://sound.wav"], "audio"), ["audio"])
    assert torch.allclose(vectors, extractor.encode_audio(sounds[:1]), atol=1e-6)


def test_space_is_that_of_all_modalities_of_the_task(
    extractor: FeatureExtractor, sounds: list[bytes]
) -> None:
    rows = column(sounds[:1], "audio")
    auto = MtebModel(extractor, "vatt/tiny")
    features = MtebModel(extractor, "vatt/tiny", space=None)
    widths = {
        "va": encode(auto, rows, ["audio", "video"]).shape[1],
        "vt": encode(auto, rows, ["video", "audio", "text"]).shape[1],
        "own": encode(auto, rows, ["audio"]).shape[1],
        "features": encode(features, rows, ["audio"]).shape[1],
    }
    head = CONFIG.head
    assert widths == {"va": head.d_va, "vt": head.d_vt, "own": head.d_va, "features": 32}
    assert features.mteb_model_meta.experiment_kwargs == {"space": "None"}


def test_models_with_one_space_use_it_and_models_without_a_head_compare_nothing(
    sounds: list[bytes],
) -> None:
    joint = dataclasses.replace(CONFIG, head=dataclasses.replace(CONFIG.head, kind="joint"))
    headless = dataclasses.replace(CONFIG, head=None)
    tokenizer = Tokenizer.train(["a dog"], 4)
    rows = column(sounds[:1], "audio")
    one = MtebModel(FeatureExtractor(VATT(joint).eval(), tokenizer, device="cpu"), "vatt/joint")
    assert encode(one, rows, ["audio", "text"]).shape[1] == joint.head.d_joint
    assert one.mteb_model_meta.embed_dim == joint.head.d_joint
    none = MtebModel(FeatureExtractor(VATT(headless), tokenizer, device="cpu"), "vatt/none")
    assert encode(none, rows, ["audio"]).shape == (1, 32)
    with pytest.raises(ValueError, match="audio and text share no space in this model"):
        encode(none, rows, ["audio", "text"])


def test_models_of_others_run_on_the_tasks_of_their_modalities(
    sounds: list[bytes], tmp_path: Path
) -> None:
    extractor = FeatureExtractor.from_pretrained(save_clap(tmp_path / "clap"), device="cpu")
    clap = MtebModel(extractor, "org/clap")
    assert clap.modalities == ["audio", "text"]
    assert clap.mteb_model_meta.revision == extractor.encoder.digest()
    assert clap.mteb_model_meta.embed_dim == 16
    similarity = extractor.similarity(text=TEXTS[:3], audio=sounds).T
    accuracy = float((similarity.argmax(dim=1) == torch.tensor(LABELS)).float().mean())
    assert scores(clap, zero_shot_task("audio", sounds))["accuracy"] == pytest.approx(accuracy)


def test_unknown_columns_and_values_are_refused_by_name(model: MtebModel) -> None:
    with pytest.raises(ValueError, match="nothing to encode: Task has label, the model video"):
        encode(model, SimpleNamespace(features=["label"]), ["text"])

    class Rows(list):
        features = ("video",)

    with (
        pytest.warns(UserWarning, match="pictures without a rate"),
        pytest.raises(UserError, match=r"a video array is uint8 \[T, H, W, 3\]"),
    ):
        encode(model, Rows([{"video": torch.zeros(2, 3, 8, 8)}]), ["video"])


def test_metadata_describe_the_model_and_its_weights(
    model: MtebModel, extractor: FeatureExtractor, tmp_path: Path
) -> None:
    from mteb.models import EncoderProtocol

    assert isinstance(model, EncoderProtocol)
    meta = model.mteb_model_meta
    assert meta.revision == weights_digest(extractor.model)
    assert meta.modalities == ["video", "image", "audio", "text"]
    assert meta.embed_dim == sorted({CONFIG.head.d_va, CONFIG.head.d_vt})
    assert meta.max_tokens == CONFIG.text.max_words
    assert meta.n_parameters == sum(p.numel() for p in extractor.model.parameters())
    assert meta.license is None
    assert meta.experiment_kwargs is None
    silent = dataclasses.replace(CONFIG, modalities=("video", "text"))
    save_model(VATT(silent), tmp_path / "run" / "model")
    loaded = MtebModel.from_pretrained(tmp_path / "run" / "model", device="cpu", num_windows=2)
    assert loaded.mteb_model_meta.name == "vatt/run-model"
    assert loaded.mteb_model_meta.modalities == ["video", "image", "text"]
    assert loaded.mteb_model_meta.experiment_kwargs == {"num_windows": "2"}
    assert loaded._space(["video", "audio", "text"]) == "vt"  # as far as the model goes
    with pytest.raises(ValueError, match="organisation/model, got 'tiny'"):
        MtebModel(extractor, "tiny")


def test_cosines_do_not_depend_on_length(model: MtebModel) -> None:
    first, second = torch.randn(3, 5), np.random.default_rng(0).normal(size=(3, 5))
    expected = F.cosine_similarity(first[:, None], torch.as_tensor(second)[None].float(), dim=-1)
    assert torch.allclose(model.similarity(first, second), expected, atol=1e-6)
    pairs = model.similarity_pairwise(first, second)
    assert torch.allclose(pairs, expected.diagonal(), atol=1e-6)


# the command


def test_tasks_that_cannot_be_had_are_listed_and_the_others_count(
    model: MtebModel, videos: list[Path], tmp_path: Path
) -> None:
    mteb = load_mteb()
    task = zero_shot_task("video", videos)
    results = run_tasks(model, [task, mteb.get_task("ESC50")], tmp_path)
    assert [fault.where for fault in results.missing] == ["ESC50"]
    (row,) = results.metrics.items()
    assert row == ("ZeroShotvideo, test", {"accuracy": 100 * scores(model, task)["accuracy"]})
    table = results_table(results, "specific")
    assert "mteb on 1 of 2 tasks listed" in table
    assert "missing: ESC50: Couldn't reach 'mteb/esc50' on the Hub" in table
    assert list((tmp_path / "mteb").rglob("ZeroShotvideo.json"))
    task.load_data = lambda **_: pytest.fail("a result that lies there is not computed again")
    task.unload_data()
    assert run_tasks(model, [task], tmp_path).metrics == results.metrics
    with pytest.raises(UserError, match="no task could be run: ESC50: Couldn't reach"):
        run_tasks(model, [mteb.get_task("ESC50")], tmp_path)


def test_command_writes_results_and_refuses_in_a_sentence(
    extractor: FeatureExtractor,
    videos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mteb = load_mteb()
    task = zero_shot_task("video", videos)
    real = mteb.get_task
    monkeypatch.setattr(mteb, "get_task", lambda name: task if name == "Own" else real(name))
    folder = tmp_path / "model"
    save_model(extractor.model, folder)
    extractor.tokenizer.save(folder / "tokenizer.json")
    command = ["evaluate", "mteb", str(folder), "--out", str(tmp_path), "--device", "cpu"]
    assert main([*command, "--tasks", "Own", "Own", "--windows", "2"]) == 0
    assert "ZeroShotvideo, test" in capsys.readouterr().out
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["metrics"]["ZeroShotvideo, test"].keys() == {"accuracy"}
    assert written["protocol"]["num_windows"] == 2
    assert (written["num_items"], written["num_listed"]) == (1, 1)
    assert written["model"]["sha256"] == weights_digest(extractor.model)
    for arguments, message in (
        (["--tasks", "ESC5"], "--tasks: 'ESC5' not found. Did you mean: 'ESC50'?"),
        (["--tasks", "ESC50"], "no task could be run: ESC50: Couldn't reach 'mteb/esc50'"),
        (["--tasks", "Own", "--windows", "0"], "--num-windows: must be at least 1, got 0"),
    ):
        assert main([*command, *arguments]) == (2 if ": must" in message else 1)
        assert message in capsys.readouterr().err
    command[2] = str(tmp_path / "none")
    assert main([*command, "--tasks", "Own"]) == 1
    assert "no model at" in capsys.readouterr().err
    save_model(VATT(dataclasses.replace(CONFIG, modalities=("video", "audio"))), folder / "mute")
    command[2] = str(folder / "mute")
    assert main([*command, "--tasks", "Own"]) == 1
    assert "ZeroShotvideo needs text, the model has video, image" in capsys.readouterr().err


def test_options_reach_the_model_and_files_that_cannot_be_read_end_the_command(
    extractor: FeatureExtractor,
    videos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mteb.mocks import MockVideoClassification

    (tmp_path / "broken.mp4").write_bytes(b"no media" * 100)

    class Task(MockVideoClassification):
        def load_data(self, **_: Any) -> None:
            paths = [*videos, tmp_path / "broken.mp4"]
            rows = column(paths, "video").add_column("label", [0, 1, 0, 1, 0, 1])
            self.dataset = {"train": rows, "test": rows}
            self.data_loaded = True

    monkeypatch.setattr(load_mteb(), "get_task", lambda _: Task())
    save_model(extractor.model, tmp_path / "model")
    command = ["evaluate", "mteb", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    command += ["--tasks", "Own", "--space", "features", "--device", "cpu"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "MockVideoClassification: " in error
    assert "broken.mp4" in error
    assert "--skip-unreadable goes on" in error
    with pytest.warns(UserWarning, match="skipped"):
        assert main([*command, "--skip-unreadable"]) == 0
    protocol = json.loads((tmp_path / "out" / "results.json").read_text())["protocol"]
    assert (protocol["space"], protocol["on_error"]) == (None, "skip")


def test_without_mteb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(UserError, match=r"pip install \"vatt\[mteb\]\""):
        load_mteb()


# mteb's own wrapper of sentence-transformers

USES_OLD_NAMES = pytest.mark.filterwarnings(
    "ignore:The fill_missing parameter is deprecated", "ignore:.* renamed to `get_embedding_dim"
)


@pytest.fixture(scope="module")
def library_model(extractor: FeatureExtractor) -> Any:
    from vatt.sentence_transformers import as_sentence_transformer

    return as_sentence_transformer(extractor)


def wrapped(library_model: Any) -> Any:
    """The model in mteb's wrapper, which takes it for one of text unless it is told otherwise."""
    from mteb.models import SentenceTransformerEncoderWrapper

    wrapper = SentenceTransformerEncoderWrapper(library_model)
    names = [name for name in library_model.modalities if name in ("text", "image", "audio")]
    meta = wrapper.mteb_model_meta.model_copy(update={"modalities": [*names, "video"]})
    wrapper.mteb_model_meta = meta
    return wrapper


@USES_OLD_NAMES
def test_text_tasks_score_the_same_on_a_sentence_transformer(
    library_model: Any, model: MtebModel
) -> None:
    import mteb.mocks

    for task in (
        mteb.mocks.MockRetrievalTask(),
        mteb.mocks.MockSTSTask(),
        mteb.mocks.MockTextZeroShotClassificationTask(),
    ):
        assert scores(library_model, task) == scores(model, task)
    # mteb asks the object for no modalities: what has sound or pictures needs MtebModel
    with pytest.raises(ValueError, match=r"supports \['text'\], but none overlap with"):
        scores(library_model, mteb.mocks.MockAny2AnyRetrievalT2ATask())


@USES_OLD_NAMES
def test_wrapper_of_mteb_passes_on_decoded_arrays_without_their_frame_rate(
    library_model: Any,
    model: MtebModel,
    extractor: FeatureExtractor,
    videos: list[Path],
    sounds: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mteb._create_dataloaders import _custom_collate_fn
    from mteb.mocks import MockVideoAudioRetrievalT2VA
    from torch.utils.data import DataLoader

    torchcodec_stand_in.install(monkeypatch)
    metadata = MockVideoAudioRetrievalT2VA.metadata
    options = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default"}
    options |= {"batch_size": 2, "show_progress_bar": False}

    def encoded(rows: Any, encoder: Any) -> torch.Tensor:
        loader = DataLoader(rows, batch_size=2, collate_fn=_custom_collate_fn)
        return torch.as_tensor(encoder.encode(loader, **options))

    rate = extractor.model.config.video.frame_rate
    decoded = [torchcodec_stand_in.VideoDecoder(path).frames for path in videos]
    frames = [one.permute(0, 2, 3, 1).contiguous() for one in decoded]
    slow = torch.cat([extractor.encode_video(one, frame_rate=rate) for one in frames])
    with pytest.warns(UserWarning, match="pictures without a rate count as 5 frames/s"):
        found = encoded(column(videos, "video"), wrapped(library_model))
    assert torch.allclose(found, slow, atol=1e-6)
    read = encoded(column(videos, "video"), model)  # by our reader, at the rate of each file
    assert torch.allclose(read, extractor.encode_video(videos), atol=1e-6)
    assert not torch.allclose(found, read, atol=1e-3)
    heard = [torchcodec_stand_in.AudioDecoder(one).samples.data[0] for one in sounds]
    with_sound = encoded(columns(video=videos, audio=sounds), wrapped(library_model))
    both = extractor.encode_video_audio(
        frames[:1], audio=[heard[0]], frame_rate=rate, sample_rate=16_000, space="vt"
    )
    assert torch.allclose(with_sound[:1], both, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of scores that are not defined for two samples
def test_mock_tasks_of_all_modalities_run_in_the_wrapper_of_mteb(
    library_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mteb import mocks

    torchcodec_stand_in.install(monkeypatch)
    of_media = [*mocks.MOCK_MIEB_TASK_GRID, *mocks.MOCK_MAEB_TASK_GRID, *mocks.MOCK_MVEB_TASK_GRID]
    cases = [(task, library_model) for task in mocks.MOCK_TASK_TEST_GRID_MONOLINGUAL]
    cases += [(task, wrapped(library_model)) for task in (*of_media, *mocks.MOCK_MULTIMODAL_TASKS)]
    for task, encoder in cases:
        name = task.metadata.name
        if "Clustering" not in name and "Multilingual" not in name:  # which take long
            assert evaluated(encoder, task), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of scores that are not defined for two samples
def test_every_mock_task_of_mteb_runs(model: MtebModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds of tasks that mteb has; its mock sounds need torchcodec to be made, ours do not."""
    import mteb.mocks

    def sound_files(random: Any, n: int = 2, **_: Any) -> list[dict[str, Any]]:
        noise = random.uniform(-1, 1, (n, 16_000)).astype(np.float32)
        return [{"bytes": audio_media(one, 16_000), "path": None} for one in noise]

    for name, module in list(sys.modules.items()):
        if name.startswith("mteb.mocks.mock_tasks.") and hasattr(module, "create_mock_audio"):
            monkeypatch.setattr(module, "create_mock_audio", sound_files)
    tasks = [*mteb.mocks.ALL_MOCK_TASK_TEST_GRID, *mteb.mocks.MOCK_MULTIMODAL_TASKS]
    makes_its_own_sound = "MockAudioClassification"
    for task in tasks:
        if task.metadata.name != makes_its_own_sound:
            found = mteb.evaluate(
                model, task, cache=None, show_progress_bar=False, co2_tracker=False
            )
            assert found.task_results, task.metadata.name
