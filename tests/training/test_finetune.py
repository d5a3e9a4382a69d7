"""Fine-tuning: what a classifier starts from, what it learns, and what its metrics are."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from compiler_warnings import COMPILES, LOADS_COMPILER
from labelled_media import write_csv, write_sounds, write_videos
from rank_processes import run_ranks, run_vatt
from reference_packs import Pack, archives, named
from reference_runs import classifier_inputs
from training_runs import read_losses, read_rows

from vatt.batch import LabelledBatch
from vatt.cli import main
from vatt.config.model import VATTConfig
from vatt.config.presets import as_classifier, preset
from vatt.errors import UserError
from vatt.evaluation.classification_metrics import (
    average_precision,
    class_ranks,
    d_prime,
    multi_label_metrics,
    roc_auc,
    single_label_metrics,
)
from vatt.models.checkpoint import load_model, save_model
from vatt.models.start_weights import load_backbone
from vatt.network.model import VATT
from vatt.network.tokens import interpolation_matrix
from vatt.runs.classifier_defaults import with_classifier
from vatt.training.finetune import FinetuneModule, ScoreTable
from vatt.training.module import NonFiniteLossError
from vatt.training.optim import OptimizerConfig, ScheduleConfig

TINY = preset("tiny")
STEPS = 12


# --- metrics ---------------------------------------------------------------------------------


def tied_scores(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of which many are the same, and labels."""
    draw = np.random.default_rng(seed)
    return draw.integers(0, 6, (rows, classes)) / 5.0, draw.random((rows, classes)) < 0.3


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_those_of_scikit_learn_with_ties(seed: int) -> None:
    from sklearn import metrics

    scores, truths = tied_scores(60, 7, seed)
    for column in range(7):
        one, truth = scores[:, column], truths[:, column]
        ours = average_precision(one, truth), roc_auc(one, truth)
        theirs = metrics.average_precision_score(truth, one), metrics.roc_auc_score(truth, one)
        assert ours == pytest.approx(theirs, abs=1e-12)
    values = multi_label_metrics(torch.from_numpy(scores), torch.from_numpy(truths))
    mean = metrics.average_precision_score(truths, scores, average="macro")
    assert values["mAP"] == pytest.approx(100 * mean, abs=1e-9)
    area = metrics.roc_auc_score(truths, scores, average="macro")
    assert values["AUC"] == pytest.approx(100 * area, abs=1e-9)
    target = truths.argmax(axis=1)
    ranks = class_ranks(torch.from_numpy(scores), torch.from_numpy(target))
    for k in (1, 2, 5):
        theirs = metrics.top_k_accuracy_score(target, scores, k=k, labels=range(7))
        assert (ranks < k).double().mean() == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_loops(seed: int) -> None:
    scores, truths = tied_scores(40, 1, seed)
    one, truth = scores[:, 0], truths[:, 0]
    wins = [float(a > b) + 0.5 * float(a == b) for a in one[truth] for b in one[~truth]]
    assert roc_auc(one, truth) == pytest.approx(sum(wins) / len(wins), abs=1e-12)
    area, before = 0.0, 0.0
    for threshold in sorted(set(one.tolist()), reverse=True):
        chosen = one >= threshold
        recall = (chosen & truth).sum() / truth.sum()
        area += (recall - before) * (chosen & truth).sum() / chosen.sum()
        before = recall
    assert average_precision(one, truth) == pytest.approx(area, abs=1e-12)


def test_perfect_and_useless_scores_have_known_values() -> None:
    truth = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 1.0, 3.0, 2.0]), truth) == 1.0
    assert roc_auc(np.array([4.0, 1.0, 3.0, 2.0]), truth) == 1.0
    assert roc_auc(np.zeros(4), truth) == 0.5
    assert average_precision(np.zeros(4), truth) == 0.5
    assert d_prime(0.5) == pytest.approx(0.0)
    assert d_prime(0.971) == pytest.approx(2.681, abs=1e-3)
    assert (d_prime(1.0), d_prime(0.0)) == (math.inf, -math.inf)
    assert math.isnan(d_prime(math.nan))


def test_classes_that_no_clip_or_every_clip_has_are_left_out_and_counted() -> None:
    scores, truths = tied_scores(30, 4, 0)
    whole = multi_label_metrics(torch.from_numpy(scores[:, :2]), torch.from_numpy(truths[:, :2]))
    truths[:, 2], truths[:, 3] = False, True
    assert multi_label_metrics(torch.from_numpy(scores), torch.from_numpy(truths)) == whole
    assert whole["num_classes"] == 2
    areas = [roc_auc(scores[:, c], truths[:, c]) for c in range(2)]
    assert whole["d_prime"] == pytest.approx((d_prime(areas[0]) + d_prime(areas[1])) / 2)
    assert multi_label_metrics(torch.zeros(3, 2), torch.zeros(3, 2)) == {"num_classes": 0.0}


def test_what_has_no_metrics_is_refused() -> None:
    labels = torch.eye(3)
    assert single_label_metrics(labels, labels) == {"top1": 100.0}  # three classes: no top-5
    with pytest.raises(ValueError, match="must have one class"):
        single_label_metrics(labels, torch.ones(3, 3))
    with pytest.raises(ValueError, match="scores are NaN"):
        single_label_metrics(labels * math.nan, labels)
    with pytest.raises(ValueError, match="no clip"):
        multi_label_metrics(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"got \[3, 3\] and \[3, 2\]"):
        multi_label_metrics(labels, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"target \[N\]"):
        class_ranks(labels, torch.zeros(2, dtype=torch.int64))


# --- start weights ---------------------------------------------------------------------------


def drawn(config: VATTConfig, seed: int = 0) -> VATT:
    torch.manual_seed(seed)
    return VATT(config)


@pytest.mark.parametrize("arrangement", ["agnostic", "specific"])
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_a_classifier_starts_from_the_tower_of_a_pretrained_model(
    tmp_path: Path, arrangement: str, modality: str
) -> None:
    pretrained = drawn(replace(TINY, arrangement=arrangement))
    save_model(pretrained, tmp_path)
    config = as_classifier(pretrained.config, modality, 5)
    model = drawn(config, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_backbone(model, tmp_path)
    theirs = pretrained.state_dict()
    for name, value in model.state_dict().items():
        expected = before[name] if name.startswith("classifier.") else theirs[name]
        assert torch.equal(value, expected), name
    assert any(not torch.equal(theirs[n], before[n]) for n in before if n in theirs)


def test_positions_are_interpolated_where_clips_are_larger(tmp_path: Path) -> None:
    pretrained = drawn(TINY)
    save_model(pretrained, tmp_path)
    larger = replace(TINY.video, image_size=48)
    model = drawn(as_classifier(TINY, "video", 5, video=larger), seed=1)
    load_backbone(model, tmp_path)
    name = "video_tokens.positions.tables.1"
    theirs, ours = pretrained.state_dict()[name], model.state_dict()[name]
    assert len(ours) == 6
    assert torch.allclose(ours, interpolation_matrix(4, 6) @ theirs, atol=1e-6)
    kept = replace(larger, position_grid=TINY.video.grid)  # interpolated at every step instead
    same = drawn(as_classifier(TINY, "video", 5, video=kept), seed=1).eval()
    load_backbone(same, tmp_path)
    assert torch.equal(same.state_dict()[name], theirs)
    clips = torch.randint(0, 256, (2, 4, 48, 48, 3), dtype=torch.uint8)
    assert torch.allclose(same.encode_video(clips), model.eval().encode_video(clips), atol=1e-5)


def test_another_tower_is_refused_and_named(tmp_path: Path) -> None:
    save_model(drawn(TINY), tmp_path / "whole")
    save_model(drawn(as_classifier(TINY, "video", 5)), tmp_path / "video")
    wider = replace(TINY, encoder=replace(TINY.encoder, d_ff=32))
    specific = replace(TINY, arrangement="specific")
    for source, config, modality, message in (
        ("whole", wider, "video", "encoder.d_ff is 64 there and 32 here"),
        ("whole", specific, "video", "arrangement is agnostic there and specific here"),
        ("video", TINY, "audio", "has video: there is no audio"),
        ("none", TINY, "video", "no model at"),
    ):
        with pytest.raises(ValueError, match=message):
            load_backbone(drawn(as_classifier(config, modality, 5)), tmp_path / source)
    load_backbone(drawn(as_classifier(TINY, "video", 9)), tmp_path / "video")  # other classes


def test_towers_that_are_left_behind_may_differ(tmp_path: Path) -> None:
    other = replace(TINY.text, vocab_size=99)
    saved = drawn(replace(TINY, text=other, head=None))
    save_model(saved, tmp_path)
    loaded = drawn(as_classifier(TINY, "video", 5))
    with torch.no_grad():
        loaded.video_tokens.agg.zero_()
    load_backbone(loaded, tmp_path)
    assert torch.equal(loaded.video_tokens.agg, saved.video_tokens.agg)


# --- the module ------------------------------------------------------------------------------


def module(config: VATTConfig | None = None, **more: Any) -> FinetuneModule:
    torch.manual_seed(0)
    schedule = ScheduleConfig(max_steps=10, warmup_steps=0)
    config = config or as_classifier(TINY, "video", 5)
    return FinetuneModule(config, OptimizerConfig(name="sgd"), schedule, **more)


@pytest.mark.parametrize("path", named(archives("num_test_samples", "out/logits")))
def test_views_are_averaged_before_the_softmax_as_officially(path: Path) -> None:
    pack, values = Pack(path.parent), dict(np.load(path))
    tuned = module(pack.model.config).eval()
    tuned.network.load_state_dict(pack.model.state_dict())
    views, rows = int(values["num_test_samples"]), classifier_inputs(pack, values)
    num_classes = tuned.classifier.num_classes
    labels = torch.zeros(len(rows), num_classes)
    labels[:, 1] = 1
    given = {name: getattr(rows, name) for name in ("video", "audio")}
    keys = tuple(f"clip {row // views}" for row in range(len(rows)))
    with torch.no_grad():
        fields = tuned.predict_step(
            LabelledBatch(**given, labels=labels, keys=keys, num_views=views), 0
        )
    expected = values["out/logits"]
    scale = np.abs(expected).max()
    assert fields["logits"].shape == expected.shape
    assert np.abs(fields["logits"].numpy() - expected).max() <= 1e-5 * scale
    assert fields["keys"] == ("clip 0", "clip 1")
    assert fields["labels"].shape == (2, num_classes)


def table_of(keys: list[str], present: list[bool] | None = None) -> ScoreTable:
    """Each clip has class and logits by its key."""
    numbers = torch.tensor([int(key) for key in keys])
    return ScoreTable(
        logits=torch.nn.functional.one_hot((numbers * 7) % 3, 3).float() + numbers[:, None] / 100,
        labels=torch.nn.functional.one_hot(numbers % 3, 3).float(),
        present=torch.tensor(present or [True] * len(keys)),
        keys=tuple(keys),
    )


def logged(tuned: FinetuneModule, tables: list[ScoreTable]) -> dict[str, float]:
    found: dict[str, float] = {}
    tuned.log_dict = lambda values, **_: found.update(values)  # type: ignore[method-assign]
    tuned._tables = tables
    tuned.on_validation_epoch_end()
    return found


def metrics_of_rank(rank: int, keys: list[list[str]]) -> dict[str, float]:
    tuned = module(as_classifier(TINY, "video", 3))
    return logged(tuned, [table_of(keys[rank][:2]), table_of(keys[rank][2:])])


def metrics_of_this_rank(keys: list[list[str]]) -> dict[str, float]:
    return metrics_of_rank(torch.distributed.get_rank(), keys)


@pytest.mark.ddp
def test_two_ranks_count_padding_once(tmp_path: Path) -> None:
    whole = logged(module(as_classifier(TINY, "video", 3)), [table_of(list("0123456"))])
    assert whole["val/num_clips"] == 7
    shares = [["0", "2", "4", "6"], ["1", "3", "5", "0"]]  # 0 again, for as many steps
    for found in run_ranks(metrics_of_this_rank, 2, tmp_path, shares):
        assert found == pytest.approx(whole, abs=1e-9)


def test_files_that_cannot_be_read_are_left_out_and_counted() -> None:
    tuned = module(as_classifier(TINY, "video", 3))
    present = [True, False, True, True]
    found = logged(tuned, [table_of(list("0123"), present)])
    kept = logged(tuned, [table_of(list("023"))])
    assert (found.pop("val/num_unread"), kept.pop("val/num_unread")) == (1.0, 0.0)
    assert found == kept
    assert logged(tuned, [table_of(["1"], [False])]) == {"val/num_clips": 0, "val/num_unread": 1}
    assert logged(tuned, []) == {}


def test_labels_are_smoothed_over_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = module(label_smoothing=0.1)
    monkeypatch.setattr(tuned, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(tuned, "_optimizer", lambda: SimpleNamespace(param_groups=[{"lr": 0.1}]))
    tuned.eval()  # no dropout
    video = torch.randint(0, 256, (5, 4, 32, 32, 3), dtype=torch.uint8)
    batch = LabelledBatch(video=video, labels=torch.eye(5))
    log_shares = tuned.network(batch).logits.log_softmax(dim=1)
    truth = torch.full((5, 5), 0.02) + 0.9 * torch.eye(5)
    expected = -(truth * log_shares).sum(dim=1).mean()
    assert tuned.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_loss_that_is_no_number_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = module()
    monkeypatch.setattr(tuned, "_optimizer", lambda: SimpleNamespace(param_groups=[{"lr": 0.1}]))
    with torch.no_grad():
        tuned.network.classifier.linear.weight.fill_(math.nan)
    video = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    batch = LabelledBatch(video=video, labels=torch.ones(1, 5), keys=("a clip",))
    with pytest.raises(NonFiniteLossError, match="at step 0 .classification nan.*a clip"):
        tuned.training_step(batch, 0)


def test_bias_of_several_labels_starts_rare() -> None:
    tuned = module(as_classifier(TINY, "audio", 11))
    bias = tuned.network.classifier.linear.bias
    assert torch.allclose(bias, torch.full_like(bias, -math.log(10)))


def test_frozen_parts_keep_their_weights() -> None:
    def learning(tuned: FinetuneModule) -> set[str]:
        named = tuned.network.named_parameters()
        return {".".join(name.split(".")[:4]) for name, p in named if p.requires_grad}

    whole, first = learning(module()), learning(module(frozen=1))
    assert learning(module(frozen="backbone")) == {
        "classifier.linear.weight",
        "classifier.linear.bias",
    }
    frozen = whole - first
    assert any(name.startswith("video_tokens") for name in frozen)
    assert {name for name in frozen if name.startswith("encoders")} == {"encoders.shared.blocks.0"}
    assert "encoders.shared.blocks.1" in first
    with pytest.raises(UserError, match="frozen is 3: give backbone, or .* up to the 2"):
        module(frozen=3)


def test_frozen_parts_have_no_dropout() -> None:
    tuned = module(frozen=1)
    tuned.on_train_start()
    first, second = tuned.network.encoders["shared"].blocks
    modes = [part.training for part in (tuned.network.video_tokens, first, second)]
    assert modes == [False, False, True]
    assert tuned.network.classifier.dropout.training


def test_what_is_no_classifier_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs model\.classifier"):
        module(TINY)
    both = as_classifier(TINY, "video", 5, modalities=("video", "audio"))
    with pytest.raises(UserError, match=r"set model\.modalities to \[video\]"):
        module(both)
    with pytest.raises(UserError, match="label_smoothing must be in"):
        module(as_classifier(TINY, "audio", 5), label_smoothing=0.1)


# --- the command -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips and sounds of three classes, a pre-trained model, and annotations."""
    folder = tmp_path_factory.mktemp("finetune")
    save_model(drawn(TINY), folder / "model")
    for name, rows in (
        ("videos", write_videos(folder, 5)),
        ("sounds", write_sounds(folder, 5)),
    ):
        write_csv(
            folder / f"{name}.csv", ("file", "label"), [r for i, r in enumerate(rows) if i % 5]
        )
        write_csv(folder / f"{name}-held.csv", ("file", "label"), rows[::5])
    return folder


def fit_arguments(corpus: Path, run: Path, *more: str, kind: str = "videos") -> list[str]:
    return [
        "fit",
        "--config=finetune_own",
        f"--model.init_args.init_from={corpus / 'model'}",
        "--model.init_args.optimizer.learning_rate=0.02",
        "--model.init_args.schedule.warmup_steps=2",
        f"--data.init_args.train={corpus / f'{kind}.csv'}",
        f"--data.init_args.validation={corpus / f'{kind}-held.csv'}",
        "--data.init_args.batch_size=6",
        "--data.init_args.num_workers=0",
        f"--run.dir={run}",
        f"--trainer.max_steps={STEPS}",
        "--trainer.val_check_interval=6",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
        "--run.checkpoint_every_n_steps=6",
        "--run.wandb=disabled",
        *more,
    ]


@pytest.fixture(scope="module")
def finished_run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    assert main(fit_arguments(corpus, run)) == 0
    return run


def test_classifier_of_own_files_is_trained_by_one_command(finished_run: Path) -> None:
    rows = read_rows(finished_run)
    losses = [float(loss) for loss in read_losses(finished_run).values()]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    last = next(row for row in reversed(rows) if row["val/top1"])
    assert float(last["val/num_clips"]) == 3
    assert (finished_run / "classes.csv").read_text().splitlines()[1:] == [
        "0,blue,blue",
        "1,green,green",
        "2,red,red",
    ]
    model = load_model(finished_run / "checkpoints" / "last.ckpt")
    assert model.config.classifier.num_classes == 3
    assert model.config.video == replace(TINY.video, position_grid=TINY.video.grid)
    assert model.config.encoder == TINY.encoder
    assert model.config.drop_token == 0


def test_run_is_evaluated_and_asked_for_predictions(
    corpus: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = [f"--config={finished_run / 'config.yaml'}", "--trainer.enable_progress_bar=false"]
    assert main(["validate", *config]) == 0
    assert "top-1" in (shown := capsys.readouterr().out)
    assert "(3 files)" in shown
    assert main(["test", *config]) == 0
    assert capsys.readouterr().out == shown
    (tmp_path / "new").mkdir()
    for name in ("red-0.mp4", "blue-1.mp4"):
        (tmp_path / "new" / name).write_bytes((corpus / name).read_bytes())
    (tmp_path / "new" / "zzz.mp4").write_bytes(b"no video")
    assert main(["predict", *config, f"--data.init_args.predict={tmp_path / 'new'}"]) == 0
    assert "predictions for 2 files" in capsys.readouterr().out
    with (finished_run / "checkpoints" / "predictions.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header[:3] == ["file", "class1", "share1"]
    assert [line[0] for line in lines] == ["blue-1.mp4", "red-0.mp4", "zzz.mp4"]
    assert sum(float(share) for share in lines[0][2::2]) == pytest.approx(1.0, abs=1e-5)
    assert lines[2] == ["zzz.mp4"]


def test_interrupted_run_goes_on_to_the_same_losses(
    corpus: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stop = ["--trainer.callbacks+=training_runs.FillDisk", "--trainer.callbacks.step=8"]
    assert main(fit_arguments(corpus, run, *stop)) == 1
    assert main(fit_arguments(corpus, run, "--ckpt_path=last")) == 0
    assert read_losses(run) == read_losses(finished_run)


def test_sound_with_several_labels_and_frozen_tower(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rows = [
        (f"{c}-{n}.wav", c if n else f"{c};loud")
        for c in ("blue", "green", "red")
        for n in range(5)
    ]
    path = write_csv(corpus / "several.csv", ("file", "labels"), rows)
    options = [
        "--model.init_args.model.classifier.modality=audio",
        "--model.init_args.model.classifier.multi_label=true",
        "--model.init_args.model.classifier.dropout=0",
        "--model.init_args.label_smoothing=0",
        "--model.init_args.frozen=backbone",
        "--data.init_args.mixup_alpha=5",
        f"--data.init_args.train={path}",
        f"--data.init_args.validation={path}",
    ]
    assert main(fit_arguments(corpus, run, *options, kind="sounds")) == 0
    last = next(row for row in reversed(read_rows(run)) if row["val/mAP"])
    assert 0 < float(last["val/mAP"]) <= 100
    assert float(last["val/num_classes"]) == 4
    tuned = load_model(run / "checkpoints" / "last.ckpt").state_dict()
    start = load_model(corpus / "model").state_dict()
    for name, value in tuned.items():
        assert name.startswith("classifier.") or torch.equal(value, start[name]), name


def test_tower_is_taken_from_the_model_and_classes_from_the_data(corpus: Path) -> None:
    arguments = fit_arguments(corpus, corpus / "run", "--model.init_args.model.video.image_size=48")
    overlay = json.loads(with_classifier(with_paths(arguments))[1].removeprefix("--config="))
    start = overlay["model"]["init_args"]["model"]
    assert start["classifier"] == {"modality": "video", "num_classes": 3}
    assert start["encoder"]["d_model"] == 32
    assert start["video"]["position_grid"] == [2, 4, 4]
    assert (start["head"], start["modalities"]) == (None, ["video"])
    other = ["fit", "--config=tiny"]
    assert with_classifier(with_paths(other)) == with_paths(other)


def with_paths(arguments: list[str]) -> list[str]:
    from vatt.config.shipped import with_config_paths

    return with_config_paths(arguments)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.init_args.init_from=nowhere", "init_from: no model at nowhere"),
        ("--data.init_args.train=nowhere.csv", "nowhere.csv is no annotation file"),
        ("--model.init_args.model.classifier.num_classes=5", "has 3 classes, the model 5"),
        ("--model.init_args.model.classifier.modality=smell", "smell"),
        ("--model.init_args.model.encoder.d_ff=32", "encoder.d_ff is 64 there and 32 here"),
        ("--data.init_args.classifier.num_classes=5", "is taken from model.init_args.model"),
        ("--model.init_args.frozen=9", "frozen is 9"),
        ("--data.init_args.batch_sise=5", "Did you mean data.init_args.batch_size?"),
    ],
)
def test_wrong_setting_gets_one_sentence(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    assert main(fit_arguments(corpus, tmp_path / "run", option)) in (1, 2)
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) <= 2  # a run that has begun says so first


@pytest.mark.ddp
def test_two_processes_train_and_measure_as_one(corpus: Path, tmp_path: Path) -> None:
    exact = ["--trainer.precision=64-true", "--model.init_args.model.classifier.dropout=0"]
    losses, measured, predicted = [], [], []
    for world_size in (1, 2):
        run = tmp_path / f"run-{world_size}"
        arguments = fit_arguments(corpus, run, *exact, "--trainer.max_steps=4")
        codes = run_vatt(arguments, world_size, tmp_path / f"{world_size}.out")
        assert codes == [0] * world_size
        rows = [row for row in read_rows(run) if row["val/loss"]]
        measured.append([float(row[f"val/{n}"]) for row in rows for n in ("loss", "num_clips")])
        losses.append(read_losses(run))
        predict = ["predict", f"--config={run / 'config.yaml'}"]
        codes = run_vatt(predict, world_size, tmp_path / f"predict-{world_size}.out")
        assert codes == [0] * world_size
        predicted.append((run / "checkpoints" / "predictions.csv").read_text())
    assert [line.split(",")[:2] for line in predicted[1].splitlines()] == [
        line.split(",")[:2] for line in predicted[0].splitlines()
    ]
    assert measured[1] == pytest.approx(measured[0], rel=1e-8)
    assert len(losses[1]) == 4


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_that_share_the_weights_train_and_measure_as_one(
    corpus: Path, tmp_path: Path
) -> None:
    exact = ["--trainer.precision=32-true", "--model.init_args.model.classifier.dropout=0"]
    options = [*exact, "--model.init_args.frozen=1", "--trainer.val_check_interval=2"]
    measured, tuned = [], []
    for world_size, overlay in ((1, []), (2, ["--config=overlay_fsdp"])):
        run = tmp_path / f"run-{world_size}"
        arguments = fit_arguments(corpus, run, *overlay, *options, "--trainer.max_steps=4")
        errors = tmp_path / f"{world_size}.out"
        codes = run_vatt(arguments, world_size, errors)
        assert codes == [0] * world_size, [path.read_text() for path in errors.iterdir()]
        rows = [row for row in read_rows(run) if row["val/loss"]]
        measured.append([float(row[f"val/{n}"]) for row in rows for n in ("loss", "num_clips")])
        tuned.append(load_model(run / "checkpoints" / "last.ckpt").state_dict())
    assert measured[1] == pytest.approx(measured[0], rel=1e-4)
    for name, value in tuned[0].items():
        assert torch.allclose(value, tuned[1][name], rtol=1e-3, atol=1e-4), name


@pytest.mark.slow  # a minute: torch's compiler
@LOADS_COMPILER
@COMPILES
def test_compiled_towers_train_and_measure_alike(corpus: Path, tmp_path: Path) -> None:
    torch.compiler.reset()
    options = ["--config=overlay_compile", "--trainer.max_steps=6", "--model.init_args.frozen=1"]
    options += ["--model.init_args.model.classifier.dropout=0", "--trainer.precision=32-true"]
    losses, measured = [], []
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        compile_option = f"--model.init_args.compile_towers={compiled}"
        assert main(fit_arguments(corpus, tmp_path / name, *options, compile_option)) == 0
        losses.append([float(loss) for loss in read_losses(tmp_path / name).values()])
        rows = [row for row in read_rows(tmp_path / name) if row["val/loss"]]
        measured.append([float(row["val/loss"]) for row in rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert measured[1] == pytest.approx(measured[0], rel=1e-3)
