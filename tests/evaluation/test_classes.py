"""Linear evaluation and zero-shot classification: splits as distributed, classifiers, prompts."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vatt import probe
from vatt.cli import main
from vatt.encoders.loading import load_encoder
from vatt.errors import UserError
from vatt.evaluation.classification_metrics import accuracies
from vatt.evaluation.clip_views import ViewPlan
from vatt.evaluation.frozen_features import FrozenFeatures, extract_features
from vatt.evaluation.linear import (
    LowRankConfig,
    evaluate_folds,
    predict_views,
    train_logistic,
    train_low_rank,
)
from vatt.evaluation.zero_shot_classification import (
    class_words,
    embed_classes,
    score_classes,
)
from vatt.evaluation.zero_shot_retrieval import evaluation_plan
from vatt.preprocess.evaluation_views import read_audio_views, read_video_views
from vatt.sets.classification import read_classification_set
from vatt.sets.items import Item

QUICK = LowRankConfig(num_steps=300, learning_rate=1e-2, weight_decay=1e-3, dropout=0.2)


@pytest.fixture
def clips(tmp_path: Path, tiny_corpus: Path) -> Path:
    """The folder of a set with two classes, four videos each."""
    sources = sorted((tiny_corpus / "train").glob("*.mp4"))
    folder = tmp_path / "clips"
    for number, name in enumerate(("ApplyEye", "Golf")):
        (folder / name).mkdir(parents=True)
        for clip in range(4):
            source = sources[4 * number + clip]
            shutil.copy(source, folder / name / f"v_{name}_g{clip:02d}_c01.mp4")
    return folder


def write_ucf101(folder: Path, train: str | None = None) -> Path:
    """Three folds of which number n tests on videos n."""
    folder.mkdir(exist_ok=True)
    (folder / "classInd.txt").write_text("1 ApplyEye\n2 Golf\n")
    names = [f"{c}/v_{c}_g{n:02d}_c01.avi" for c in ("ApplyEye", "Golf") for n in range(4)]
    for fold in (1, 2, 3):
        test = [name for name in names if f"_g{fold:02d}" in name]
        number = {"A": 1, "G": 2}
        lines = [f"{name} {number[name[0]]}" for name in names if name not in test]
        (folder / f"trainlist0{fold}.txt").write_text("\n".join(lines) + "\n")
        (folder / f"testlist0{fold}.txt").write_text("\r\n".join(test) + "\r\n")
    if train is not None:
        (folder / "trainlist02.txt").write_text(train)
    return folder


def test_ucf101_has_three_folds_of_its_lists(tmp_path, clips):
    found = read_classification_set(write_ucf101(tmp_path / "lists"), clips)
    assert found.name == "ucf101"
    assert found.labels == ["ApplyEye", "Golf"]
    splits = {Path(item.source).stem: item.splits for item in found.items}
    assert len(splits) == 8
    assert splits["v_Golf_g02_c01"] == ("train", "test", "train")
    assert splits["v_Golf_g00_c01"] == ("train", "train", "train")
    assert {item.label for item in found.items if "/Golf/" in item.source} == {"Golf"}


def test_hmdb51_has_three_folds_and_clips_in_neither_split(tmp_path, clips):
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in ("ApplyEye", "Golf"):
        for fold in (1, 2, 3):
            lines = [f"v_{name}_g{n:02d}_c01.avi {(n + fold) % 3} " for n in range(4)]
            (lists / f"{name}_test_split{fold}.txt").write_text("\n".join(lines) + "\n")
    shutil.copy(clips / "Golf" / "v_Golf_g00_c01.mp4", clips / "ApplyEye")  # the same name twice
    nested = tmp_path / "media"
    nested.mkdir()
    clips.rename(nested / "hmdb51_org")
    found = read_classification_set(lists, nested)
    assert found.name == "hmdb51"
    splits = {item.key: item.splits for item in found.items}
    assert len(splits) == 8
    assert splits["Golf/v_Golf_g00_c01.avi"] == ("train", "test", "")
    golf = next(item for item in found.items if item.key == "Golf/v_Golf_g00_c01.avi")
    assert Path(golf.source).parent.name == "Golf"


def test_esc50_tests_on_each_of_its_folds_once(tmp_path, clips):
    header = "filename,fold,target,category,esc10,src_file,take\n"
    lines = [
        f"v_Golf_g{n:02d}_c01.wav,{n + 1},{n % 2},{'dog' if n % 2 else 'cat'},True,1,A"
        for n in range(5)
    ]
    path = tmp_path / "esc50.csv"
    path.write_text(header + "\n".join(lines))
    found = read_classification_set(path, clips)
    assert found.name == "esc50"
    assert [item.splits.index("test") for item in found.items] == [0, 1, 2, 3]
    assert all(item.splits.count("train") == 4 for item in found.items)
    assert found.num_listed == 5
    assert found.missing[0].where == "esc50.csv, line 6"


def test_own_csv_has_one_split_or_folds_or_is_all_for_testing(tmp_path, clips):
    path = tmp_path / "own.csv"
    names = [f"Golf/v_Golf_g{n:02d}_c01.mp4" for n in range(3)]
    path.write_text(
        "file,label,split\n" + "".join(f"{n},a,train\n" for n in names[:2]) + f"{names[2]},a,test\n"
    )
    found = read_classification_set(path, clips)
    assert [item.splits for item in found.items] == [("train",), ("train",), ("test",)]
    assert len(found.in_split("test").items) == 1
    path.write_text("label,file\n" + "".join(f"a,{n}\n" for n in names))
    assert {i.splits for i in read_classification_set(path, clips).items} == {("test",)}
    path.write_text("label,file,fold\n" + "".join(f"a,{n},{10 - i}\n" for i, n in enumerate(names)))
    folds = [item.splits.index("test") for item in read_classification_set(path, clips).items]
    assert folds == [2, 1, 0]  # 8, 9, 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na,b\n", "line 1: lacks the column file"),
        (
            "file,label,split\na,x,train\nb,x,val\n",
            "line 3: split must be train or test, got 'val'",
        ),
        ("file,label,split\na,x,train\nb,y,test\n", "line 3: no training clip has the label 'y'"),
        ("file,label,split\na,x,train\na,x,test\n", "line 3: 'a' is in own.csv, line 2 already"),
        ("file,label,fold\na,x,1\nb,,1\n", "line 3: needs a file, a label and a split or fold"),
        ("file,label,fold\na,x,1\nb,x,1\n", "needs at least two folds, has 1"),
        ("file,label,fold,split\na,x,1,test\n", "has both split and fold"),
        ("filename,fold,category\na,1,x\na,2,x\n", "line 3: 'a' is in own.csv, line 2 already"),
        ("filename,fold,category\n", "own.csv describes no clip"),
        ("file,label,label\na,x,y\n", "line 1: has the column 'label' twice"),
    ],
)
def test_a_csv_that_cannot_be_right_is_refused_by_line(tmp_path, clips, text, message):
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_classification_set(path, clips)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("Golf/a.avi 2\nGofl/b.avi 2\n", "trainlist02.txt, line 2: 'Gofl' is no class"),
        ("Golf/a.avi 1\n", "line 1: class 'Golf' is 2 in classInd.txt, here 1"),
        ("a.avi 2\n", "line 1: must be CLASS/FILE and a number"),
        ("\n", "trainlist02.txt: names no video"),
        (
            "Golf/v_Golf_g02_c01.avi 2\n",
            "'Golf/v_Golf_g02_c01.avi' is in testlist02.txt, line 2 already",
        ),
    ],
)
def test_lists_that_cannot_be_right_are_refused_by_line(tmp_path, clips, train, message):
    with pytest.raises(UserError) as error:
        read_classification_set(write_ucf101(tmp_path / "lists", train), clips)
    assert message in str(error.value)


def test_lists_may_begin_with_a_byte_order_mark(tmp_path, clips):
    lists = write_ucf101(tmp_path / "lists")
    for path in lists.iterdir():
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_classification_set(lists, clips).labels == ["ApplyEye", "Golf"]


@pytest.mark.parametrize("line", ["1 Golf", "3 ApplyEye", "1 Other"])
def test_a_class_or_number_that_stands_twice_is_named(tmp_path, clips, line):
    lists = write_ucf101(tmp_path / "lists")
    (lists / "classInd.txt").write_text(f"1 ApplyEye\n2 Tennis\n{line}\n")
    with pytest.raises(UserError, match=f"classInd.txt, line 3: '{line}' has a number or class"):
        read_classification_set(lists, clips)


def test_lists_of_hmdb51_that_lack_one_or_are_empty_are_refused(tmp_path, clips):
    for name in ("ApplyEye_test_split1.txt", "ApplyEye_test_split2.txt", "Golf_test_split1.txt"):
        (tmp_path / name).write_text("v_Golf_g00_c01.avi 1 \n")
    with pytest.raises(UserError, match="lacks Golf_test_split2.txt"):
        read_classification_set(tmp_path, clips)
    (tmp_path / "Golf_test_split2.txt").write_text("\n")
    with pytest.raises(UserError, match="Golf_test_split2.txt: names no video"):
        read_classification_set(tmp_path, clips)


def test_a_folder_without_lists_or_with_half_of_them_is_refused(tmp_path, clips):
    with pytest.raises(UserError, match="has neither trainlist01.txt"):
        read_classification_set(clips, clips)
    with pytest.raises(UserError, match="no annotations at"):
        read_classification_set(tmp_path / "nowhere", clips)
    lists = write_ucf101(tmp_path / "lists")
    (lists / "testlist03.txt").unlink()
    with pytest.raises(UserError, match="lacks testlist03.txt"):
        read_classification_set(lists, clips)


def separable(num_clips=40, num_classes=3, views=2, width=8, noise=0.5):
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(num_classes, width, generator=generator)
    labels = torch.arange(num_clips) % num_classes
    values = centres[labels][:, None] + noise * torch.randn(
        num_clips, views, width, generator=generator
    )
    items = tuple(
        Item(
            key=str(n),
            source="",
            place="",
            label="abcdefgh"[int(labels[n])],
            splits=("test" if n % 4 == 1 else "train", "test" if n % 4 == 2 else "train"),
        )
        for n in range(num_clips)
    )
    return FrozenFeatures(items=items, values=values), "abcdefgh"[:num_classes]


@pytest.mark.slow
def test_the_low_rank_classifier_learns_what_can_be_separated_and_repeats_itself():
    features, classes = separable()
    rows = evaluate_folds(features, classes, ["low-rank"], low_rank=QUICK)
    assert list(rows) == ["low-rank, fold 1", "low-rank, fold 2", "low-rank, mean of folds"]
    assert all(row == {"top-1": 100.0} for row in rows.values())
    flat, labels = features.values.flatten(0, 1), torch.arange(40).repeat_interleave(2) % 3
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (
        train_low_rank(flat, labels, 3, QUICK, seed=seed)(flat) for seed in (0, 0, 1)
    )
    assert torch.get_rng_state().equal(state)
    assert first.equal(again)
    assert not first.equal(other)
    assert torch.allclose(first.sum(dim=1), torch.ones(len(flat)))
    without = train_low_rank(flat, labels, 3, replace(QUICK, dropout=0.0), seed=0)(flat)
    assert not first.equal(without)


def test_heavy_weight_decay_makes_classes_nearly_equally_probable():
    features, _ = separable()
    flat, labels = features.values.flatten(0, 1), torch.arange(40).repeat_interleave(2) % 3
    gaps = {}
    for decay in (0.0, 1e3):
        config = LowRankConfig(num_steps=200, learning_rate=1e-2, weight_decay=decay, dropout=0.0)
        found = train_low_rank(flat, labels, 3, config, seed=0)(flat)
        gaps[decay] = float((found.amax(dim=1) - found.amin(dim=1)).mean())
    assert gaps[0.0] > 0.9
    assert gaps[1e3] < 0.2


def test_logistic_regression_is_that_of_scikit_learn():
    from sklearn import linear_model

    features, classes = separable(num_classes=7, noise=4.0)
    rows = evaluate_folds(features, classes, ["logistic"], regularisation=0.3)
    values = features.values.double().numpy()
    for fold in range(2):
        test = np.array([item.splits[fold] == "test" for item in features.items])
        labels = np.array([item.label for item in features.items])
        samples = values[~test].reshape(-1, 8)
        mean, deviation = samples.mean(axis=0), samples.std(axis=0)
        regression = linear_model.LogisticRegression(C=0.3, max_iter=2000)
        regression.fit((samples - mean) / deviation, labels[~test].repeat(2))
        found = regression.predict_proba((values[test].reshape(-1, 8) - mean) / deviation)
        found = found.reshape(-1, 2, 7).mean(axis=1)
        order = found.argsort(axis=1)[:, ::-1]
        wanted = np.array([classes.index(label) for label in labels[test]])[:, None]
        row = rows[f"logistic, fold {fold + 1}"]
        assert row["top-1"] == pytest.approx(100 * (order[:, :1] == wanted).any(1).mean(), abs=1e-9)
        assert row["top-5"] == pytest.approx(100 * (order[:, :5] == wanted).any(1).mean(), abs=1e-9)
    assert 0 < rows["logistic, mean of folds"]["top-1"] < 100


def test_classes_without_a_training_clip_have_probability_zero():
    values = torch.randn(6, 4)
    predict = train_logistic(values, torch.tensor([0, 2, 0, 2, 0, 2]), 4)
    found = predict(values)
    assert found.shape == (6, 4)
    assert found[:, [1, 3]].abs().max() == 0
    assert torch.allclose(found.sum(dim=1), torch.ones(6).double())
    with pytest.raises(UserError, match="at least two classes"):
        train_logistic(values, torch.zeros(6, dtype=torch.int64), 4)


def test_probabilities_of_views_are_averaged_not_their_logits():
    features = torch.tensor([[[0.0], [4.0]]])

    def predict(rows):
        return torch.cat([rows.sigmoid(), 1 - rows.sigmoid()], dim=1)

    expected = (0.5 + torch.tensor(4.0).sigmoid()) / 2
    assert predict_views(predict, features)[0, 0] == pytest.approx(float(expected))


def test_accuracy_counts_a_tie_over_the_edge_as_a_miss():
    scores = torch.tensor([[3.0, 2, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]])
    assert accuracies(scores, torch.tensor([0, 0])) == {"top-1": 50.0, "top-5": 100.0}
    assert accuracies(scores[:1], torch.tensor([3])) == {"top-1": 0.0, "top-5": 0.0}
    assert accuracies(scores[:, :4], torch.tensor([0, 1])) == {"top-1": 50.0}


def test_a_fold_without_training_clips_is_named():
    features, classes = separable()
    only_test = tuple(
        Item(key=item.key, source="", place="", label=item.label, splits=("test",))
        for item in features.items
    )
    with pytest.raises(UserError, match="fold 1 has no train clip"):
        evaluate_folds(FrozenFeatures(items=only_test, values=features.values), classes)


def set_items(clips: Path) -> list[Item]:
    return [
        Item(key=path.stem, source=str(path), place="", label=path.parent.name)
        for path in sorted(clips.glob("*/*.mp4"))
    ]


def test_features_are_those_of_every_view_and_are_read_once(model_folder, clips, tmp_path):
    encoder = load_encoder(model_folder, device="cpu")
    model = encoder.model
    plan = evaluation_plan(encoder, num_windows=2, modalities=["video"])
    assert plan.audio is None
    items = set_items(clips)
    cache = tmp_path / "cache"

    def extract(digest="a", plan=plan):
        return extract_features(
            encoder, items, plan, modality="video", digest=digest, cache=cache, batch_size=3
        )

    first = extract()
    views = read_video_views(items[5].source, model.config.video, num_windows=2, num_crops=1)
    with torch.no_grad():
        assert torch.allclose(first.values[5], model.encode_video(views), atol=1e-5)
    assert first.values.shape == (8, 2, 32)
    with torch.no_grad():
        for weight in model.parameters():  # whoever gets the same values now has not encoded
            weight.zero_()
    assert extract().values.equal(first.values)
    assert not extract(digest="b").values.equal(first.values)
    other = ViewPlan(video=plan.video, audio=None, num_windows=1)
    assert extract(plan=other).values.shape == (8, 1, 32)
    shutil.copy(items[1].source, items[0].source)
    assert not extract().values.equal(first.values)


def test_damaged_features_and_clips_are_named(model_folder, clips, tmp_path):
    encoder = load_encoder(model_folder, device="cpu")
    plan = evaluation_plan(encoder, num_windows=1, modalities=["video"])
    items = set_items(clips)
    Path(items[2].source).write_bytes(b"nothing")
    for _ in range(2):  # read, then kept
        found = extract_features(
            encoder, items, plan, modality="video", digest="", cache=tmp_path / "cache"
        )
        assert [fault.where for fault in found.faults] == [items[2].key]
        assert len(found.values) == len(found.items) == 7
    next((tmp_path / "cache").iterdir()).write_bytes(b"half")
    with pytest.raises(UserError, match="is damaged .* delete it"):
        extract_features(
            encoder, items, plan, modality="video", digest="", cache=tmp_path / "cache"
        )
    with pytest.raises(UserError, match="none of 1 clips can be read"):
        extract_features(encoder, items[2:3], plan, modality="video", digest="")


def test_labels_are_said_as_words():
    assert class_words("ApplyEyeMakeup") == "apply eye makeup"
    assert class_words("brush_hair") == "brush hair"
    assert class_words("YoYo") == "yo yo"
    assert class_words("TVShow 2") == "tv show 2"


def test_a_class_is_the_mean_of_its_prompts(model_folder):
    encoder = load_encoder(model_folder, device="cpu")
    prompts = ["a {}", "the {} moves"]
    found = embed_classes(encoder, ["redCircle", "star"], prompts, modality="video")
    with torch.no_grad():
        texts = ["a red circle", "the red circle moves"]
        said = encoder.model.embed_text(encoder.tokenizer.encode(texts, 16))["vt"].double()
    mean = torch.nn.functional.normalize(said, dim=1).mean(dim=0)
    assert torch.allclose(found[0], mean / mean.norm(), atol=1e-6)
    with pytest.raises(UserError, match="needs {} where the class goes"):
        embed_classes(encoder, ["a"], ["no place"], modality="video")
    with pytest.raises(UserError, match="nothing is left"):
        embed_classes(encoder, ["!"], modality="video")


def test_sound_meets_text_through_the_last_step_of_the_video_head(model_folder, clips):
    encoder = load_encoder(model_folder, device="cpu")
    model = encoder.model
    items = [item for item in set_items(clips) if probe(item.source).has_audio][:2]
    classes = embed_classes(encoder, ["circle", "star"], modality="audio")
    plan = evaluation_plan(encoder, num_windows=1, modalities=["audio"])
    _, scores = score_classes(encoder, items, classes, plan, modality="audio")
    sound = read_audio_views(items[1].source, model.config.audio, num_windows=1)
    with torch.no_grad():
        beside = model.head.va_to_vt(model.embed_audio(sound)["va"])[0].double()
    assert torch.allclose(scores["embeddings"][1], classes @ (beside / beside.norm()), atol=1e-6)


def test_clips_are_scored_by_both_averages(model_folder, clips):
    encoder = load_encoder(model_folder, device="cpu")
    model, items = encoder.model, set_items(clips)
    classes = embed_classes(encoder, ["circle", "star", "ring"], modality="video")
    plan = evaluation_plan(encoder, num_windows=2, modalities=["video"])
    _, scores = score_classes(encoder, items, classes, plan, modality="video")
    views = read_video_views(items[3].source, model.config.video, num_windows=2, num_crops=1)
    with torch.no_grad():
        embedded = model.embed_video(views)["vt"].double()
    unit = torch.nn.functional.normalize(embedded, dim=1)
    mean = torch.nn.functional.normalize(embedded.mean(dim=0), dim=0)
    assert torch.allclose(scores["similarities"][3], (unit @ classes.T).mean(dim=0), atol=1e-6)
    assert torch.allclose(scores["embeddings"][3], classes @ mean, atol=1e-6)
    assert not torch.equal(*scores.values())
    with pytest.raises(UserError, match="got no prompt"):
        embed_classes(encoder, ["circle"], [], modality="video")


def test_the_commands_measure_every_fold_and_write_it_down(model_folder, clips, tmp_path, capsys):
    lists = write_ucf101(tmp_path / "lists")
    (clips / "Golf" / "v_Golf_g01_c01.mp4").unlink()
    (clips / "Golf" / "v_Golf_g02_c01.mp4").write_bytes(b"nothing")
    shared = ["--data", str(lists), "--media", str(clips), "--windows", "1", "--workers", "0"]
    out = tmp_path / "linear"
    options = ["--classifiers", "low-rank", "--steps", "20", "--out", str(out)]
    (clips / "Golf" / "v_Golf_g05_c01.mp4").write_bytes(
        (clips / "Golf" / "v_Golf_g00_c01.mp4").read_bytes()
    )
    for fold in (1, 2):  # a test clip in place of the two that are gone
        with (lists / f"testlist0{fold}.txt").open("a") as file:
            file.write("Golf/v_Golf_g05_c01.avi\n")
    assert main(["evaluate", "linear", str(model_folder), *shared, *options]) == 0
    printed = capsys.readouterr().out
    assert re.match(r"features of video differ by [\d.e-]+ % of their size", printed)
    content = json.loads((out / "results.json").read_text())
    assert (content["num_items"], content["num_listed"]) == (7, 9)
    assert "has no file in" in content["missing"][0]["reason"]
    assert content["unreadable"][0]["where"] == "Golf/v_Golf_g02_c01.avi"
    assert content["protocol"]["frame_rate"] == 12.5
    assert content["protocol"]["classifiers"]["low-rank"]["num_steps"] == 20
    assert list(content["metrics"]) == [f"low-rank, fold {n}" for n in (1, 2, 3)] + [
        "low-rank, mean of folds"
    ]
    assert "(84.4)" not in printed  # the paper's number is of the whole set
    assert any((out / "features").iterdir())
    out = tmp_path / "zero-shot"
    options = ["--prompt", "a {}", "--prompt", "{} here", "--out", str(out), "--frame-rate", "5"]
    assert main(["evaluate", "zero-shot", str(model_folder), *shared, *options]) == 0
    content = json.loads((out / "results.json").read_text())
    assert (content["num_items"], content["num_listed"]) == (5, 7)  # those of the test lists
    assert content["protocol"]["prompts"] == ["a {}", "{} here"]
    assert content["protocol"]["frame_rate"] == 5
    assert content["metrics"].keys() >= {"embeddings, fold 1", "similarities, mean of folds"}


def test_strong_regularisation_leaves_only_the_frequent_class(model_folder, clips, tmp_path):
    rare = "Golf/v_Golf_g00_c01.mp4"
    shutil.copy(clips / rare, clips / "again.mp4")
    frequent = [f"ApplyEye/v_ApplyEye_g{n:02d}_c01.mp4,often,train" for n in range(3)]
    rows = ["file,label,split", *frequent, f"{rare},rare,train", "again.mp4,rare,test"]
    data, out = tmp_path / "own.csv", tmp_path / "out"
    data.write_text("\n".join(rows))
    found = []
    for regularisation in ("1", "1e-9"):
        options = ["--classifiers", "logistic", "--regularisation", regularisation]
        where = ["--data", str(data), "--media", str(clips), "--out", str(out), "--workers", "0"]
        assert main(["evaluate", "linear", str(model_folder), *where, *options]) == 0
        content = json.loads((out / "results.json").read_text())
        found.append(content["metrics"]["logistic, mean of folds"]["top-1"])
    assert found == [100, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classifiers", "svm"], "--classifiers are low-rank and logistic"),
        (["--steps", "0"], "--steps: must be at least 1"),
        (["--regularisation", "0"], "--regularisation: must be positive"),
    ],
)
def test_options_that_cannot_work_are_named(model_folder, clips, options, message, capsys):
    arguments = [str(model_folder), "--data", ".", "--media", str(clips), *options]
    assert main(["evaluate", "linear", *arguments]) == (2 if ": must" in message else 1)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("task", ["linear", "zero-shot"])
def test_several_processes_are_refused_where_one_measures(clips, task, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", task, "none", "--data", ".", "--media", str(clips)]) == 1
    assert f"evaluate {task} runs in one process" in capsys.readouterr().err
