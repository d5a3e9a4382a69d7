"""Fine-tuning: the module, and training by the command line."""

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

import vatt.training.finetune
from vatt.batch import LabelledBatch
from vatt.cli import main
from vatt.config.model import VATTConfig
from vatt.config.presets import as_classifier, preset
from vatt.config.shipped import given_values, with_config_paths
from vatt.errors import UserError
from vatt.models.checkpoint import load_model, save_model
from vatt.network.model import VATT
from vatt.runs.classifier_defaults import training_set, with_classifier
from vatt.training.finetune import FinetuneModule, ScoreTable
from vatt.training.finite import NonFiniteLossError
from vatt.training.optim import OptimizerConfig, ScheduleConfig

TINY = preset("tiny")
STEPS = 12


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


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_count_padding_once(tmp_path: Path) -> None:
    whole = logged(module(as_classifier(TINY, "video", 3)), [table_of(list("0123456"))])
    assert whole["val/num_clips"] == 7
    shares = [["0", "2", "4", "6"], ["1", "3", "5", "0"]]  # 0 again, for as many steps
    for found in run_ranks(metrics_of_this_rank, 2, tmp_path, shares):
        assert found == pytest.approx(whole, abs=1e-9)


def test_one_class_for_all_files_is_told_with_the_remedy(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    tuned = module(as_classifier(TINY, "video", 3))
    logged(tuned, [table_of(["0", "1", "2"])])
    assert not caplog.text
    table = table_of(["0", "1", "2"])
    constant = replace(table, logits=torch.eye(3)[[1, 1, 1]])
    logged(tuned, [constant])
    logged(tuned, [constant])
    assert caplog.text.count("all 3 files get the same class") == 1
    assert "classifier.standardize to true" in caplog.text
    tuned._trainer = SimpleNamespace(datamodule=None)  # type: ignore[assignment]
    tuned._trainer.state = SimpleNamespace(fn="predict")
    message = tuned.save_predictions([vars(constant)], tmp_path)
    assert message == f"predictions for 3 files, top-1 33.3: {tmp_path / 'predictions.csv'}"


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
    monkeypatch.setattr(tuned, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(tuned, "_optimizer", lambda: SimpleNamespace(param_groups=[{"lr": 0.1}]))
    with torch.no_grad():
        tuned.network.classifier.linear.weight.fill_(math.nan)
    video = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    batch = LabelledBatch(video=video, labels=torch.ones(1, 5), keys=("a clip",))
    tuned.training_step(batch, 0)
    with pytest.raises(NonFiniteLossError, match="at step 0 .classification nan.*a clip"):
        tuned.check_losses()


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
    torch.manual_seed(0)
    save_model(VATT(TINY), folder / "model")
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
        "--model.init_args.optimizer.learning_rate=0.003",
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
    assert main(["predict", *config]) == 0
    assert "predictions for 3 files, top-1 " in capsys.readouterr().out
    assert main(["predict", *config, f"--data.init_args.predict={tmp_path / 'new'}"]) == 0
    assert "predictions for 2 files, 1 could not be read: " in capsys.readouterr().out
    with (finished_run / "predictions.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header[:3] == ["file", "class1", "probability1"]
    assert [line[0] for line in lines] == ["blue-1.mp4", "red-0.mp4", "zzz.mp4"]
    assert sum(float(share) for share in lines[0][2::2]) == pytest.approx(1.0, abs=1e-5)
    names = [row.split(",")[2] for row in (finished_run / "classes.csv").read_text().split()[1:]]
    assert {cell for line in lines[:2] for cell in line[1::2]} == {*names}
    assert lines[2] == ["zzz.mp4"]


def test_plain_recipe_learns_sounds_from_a_model_whose_features_are_nearly_parallel(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load_model(corpus / "model")
    with torch.no_grad():  # a constant that is large beside all differences
        model.post_projections["audio"].bias += 100
    save_model(model, tmp_path / "parallel")
    run = tmp_path / "run"
    arguments = ["fit", "--config", "finetune_own", "--init-from", f"{tmp_path / 'parallel'}"]
    arguments += ["--train", f"{corpus / 'sounds.csv'}", "--val", f"{corpus / 'sounds-held.csv'}"]
    arguments += ["--out", f"{run}", "--workers=0", "--run.wandb=disabled"]
    arguments += ["--trainer.accelerator=cpu", "--trainer.val_check_interval=60"]
    assert main(arguments) == 0
    shown = capfd.readouterr().err
    assert shown.startswith("12 files: 120 steps of 12, ")
    assert "hardly learned" not in shown
    rows = [row for row in read_rows(run) if row["val/top1"]]
    assert [int(row["step"]) + 1 for row in rows] == [60, 120]
    assert float(rows[0]["val/top1"]) > 34  # statistics keep up with the weights
    assert float(rows[-1]["val/top1"]) == 100
    tuned = load_model(run / "checkpoints" / "last.ckpt")
    assert tuned.config.classifier.standardize
    assert tuned.config.modalities == ("audio",)


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
    start = defaults_of(arguments)["model"]["init_args"]["model"]
    assert start["classifier"] == {"modality": "video", "num_classes": 3}
    assert start["encoder"]["d_model"] == 32
    assert start["video"]["position_grid"] == [2, 4, 4]
    assert (start["head"], start["modalities"]) == (None, ["video"])
    assert defaults_of(["fit", "--config=tiny"]) is None


class OwnFinetuning(FinetuneModule):
    """Of a user."""


def test_subclass_of_a_user_keeps_the_defaults(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vatt.training.finetune, "OwnFinetuning", OwnFinetuning, raising=False)
    class_path = "vatt.training.finetune.OwnFinetuning"
    arguments = fit_arguments(corpus, corpus / "run", f"--model.class_path={class_path}")
    model = defaults_of(arguments)["model"]
    assert model["class_path"] == class_path
    assert model["init_args"]["model"]["classifier"]["num_classes"] == 3
    assert defaults_of(["fit", "--model.class_path=nowhere.Module"]) is None


def defaults_of(arguments: list[str]) -> Any:
    """The configuration that precedes those of the user; None: there is none."""
    arguments = with_config_paths(arguments)
    given = given_values(arguments)
    result = with_classifier(arguments, given, training_set("fit", given))
    return None if result == arguments else json.loads(result[1].removeprefix("--config="))


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


@pytest.mark.slow
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
        predicted.append((run / "predictions.csv").read_text())
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
    # Adam makes much of how float32 rounds the gradient of keys' biases, which have none
    options += [f"--model.init_args.optimizer.{o}" for o in ("name=sgd", "learning_rate=0.02")]
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
