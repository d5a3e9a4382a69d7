"""Training runs by the real command line, on the tiny corpus."""

import contextlib
import io
import resource
import shlex
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from training_runs import STEPS, fit_arguments, read_losses, read_rows, signal_options

from vatt.batch import Batch
from vatt.cli import main
from vatt.config.model import VATTConfig
from vatt.config.presets import preset
from vatt.config.spaces import DIRECTIONS
from vatt.errors import CheckpointError, UserError
from vatt.evaluation.embedding_table import EmbeddingTable
from vatt.models.checkpoint import load_model, read_steps
from vatt.network.contrastive_loss import LossConfig
from vatt.packing.build import build_shards
from vatt.preprocess.tokenizer import Tokenizer
from vatt.runs.checkpoint import AtomicCheckpointIO
from vatt.runs.steps import StepClock, TimeBudget
from vatt.shards.shard_set import ShardSet
from vatt.training.finite import NonFiniteLossError
from vatt.training.module import join_ranks
from vatt.training.optim import OptimizerConfig, ScheduleConfig, learning_rate_factor
from vatt.training.pretrain import PretrainModule

TINY = preset("tiny").encoder


def test_run_directory_holds_everything_of_the_run(trained_run: Path) -> None:
    names = {str(path.relative_to(trained_run)) for path in trained_run.rglob("*")}
    files = {"config.yaml", "environment.json", "metrics.csv", "tokenizer.json"}
    checkpoints = {f"checkpoints/{name}.ckpt" for name in ("last", "previous")}
    assert names == {*files, "checkpoints", *checkpoints}


def test_metrics_have_their_names_and_a_row_for_each_step(trained_run: Path) -> None:
    rows = read_rows(trained_run)
    assert [int(row["step"]) for row in rows] == list(range(STEPS))
    assert {
        *("train/loss", "train/loss_video_audio", "train/loss_video_text", "train/grad_norm"),
        *("train/accuracy_video_audio", "train/accuracy_video_text", "train/learning_rate"),
        *("perf/clips_per_second", "perf/data_wait_share", "perf/step_seconds"),
        *("data/decode_failures", "data/text_coverage", "data/audio_coverage"),
        *(f"val/text_to_video/{name}" for name in ("R@1", "R@5", "R@10", "MedR")),
        *(f"val/{direction}/R@1" for direction in DIRECTIONS),
    } <= rows[0].keys()
    assert [int(row["step"]) for row in rows if row["val/text_to_video/R@1"]] == [3, 7, 9]
    names = ("num_queries", "num_candidates")
    assert [rows[-1][f"val/video_to_audio/{name}"] for name in names] == ["16.0", "16.0"]
    assert all(0 <= float(row["perf/data_wait_share"]) <= 1 for row in rows)


def test_learning_rate_follows_the_schedule_of_the_config(trained_run: Path) -> None:
    schedule = ScheduleConfig(
        kind="constant_then_linear", max_steps=STEPS, warmup_steps=2, final_factor=0.0
    )
    expected = [1e-3 * learning_rate_factor(schedule, step / STEPS) for step in range(STEPS)]
    logged = [float(row["train/learning_rate"]) for row in read_rows(trained_run)]
    assert logged == pytest.approx(expected, rel=1e-6)


def test_checkpoint_describes_its_model_and_holds_no_objects(trained_run: Path) -> None:
    path = trained_run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == STEPS
    assert "hyper_parameters" not in checkpoint
    assert load_model(path).config.to_dict() == checkpoint["vatt_config"]


def test_media_without_captions_train_video_and_sound(
    tiny_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    media, run = tmp_path / "media", tmp_path / "run"
    media.mkdir()
    for file in sorted((tiny_corpus / "train").glob("*.mp4"))[:12]:
        shutil.copy(file, media)
    for split in ("train", "validation"):
        build_shards(media, tmp_path / split, show_progress=False)
    assert main(fit_arguments(tmp_path, run)) == 1
    assert "no word" in (said := capsys.readouterr().err)
    assert "add --config overlay_video_audio" in said
    more = ["--config=overlay_video_audio", "--trainer.max_steps=4"]
    assert main(fit_arguments(tmp_path, run, *more)) == 0
    assert "the model has no text: loss.video_text_weight is taken as 0" in caplog.text
    assert not (run / "tokenizer.json").exists()
    rows = read_rows(run)
    assert all(row["train/loss"] == row["train/loss_video_audio"] for row in rows[:4])
    assert load_model(run).config.modalities == ("video", "audio")
    again = tmp_path / "again"
    stop = signal_options("step", signal.SIGTERM, step=2)
    assert main(fit_arguments(tmp_path, again, *more, *stop)) == 128 + signal.SIGTERM
    assert main(fit_arguments(tmp_path, again, *more, "--ckpt_path=last")) == 0
    assert read_losses(again) == read_losses(run)


@pytest.mark.slow
def test_next_commands_work_as_printed(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "own run ü")
    more = [f"--run.dir={run}", "--ckpt_path=last", f"--trainer.max_steps={STEPS + 2}"]
    assert main(["fit", f"--config={run / 'config.yaml'}", *more]) == 0
    lines = capsys.readouterr().out.split("Next:")[1].splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("  vatt ")]
    assert [command[1] for command in commands] == ["report", "validate", "fit"]
    assert main([*commands[0][1:], "--clips=4", "--workers=0"]) == 0
    assert (run / "report.html").is_file()
    for command in commands[1:]:
        assert main([*command[1:], "--trainer.limit_val_batches=1"]) == 0


@pytest.mark.slow
def test_time_budget_ends_the_run_with_its_schedule_carried_out(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    budget = 3.0
    options = [f"--run.time_budget_seconds={budget}", "--trainer.max_steps=1000000"]
    assert main(fit_arguments(tiny_shards, run, *options)) == 0
    rows = [row for row in read_rows(run) if row["train/loss"]]
    rates = [float(row["train/learning_rate"]) for row in rows]
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] < max(rates)  # it fell, by time: a millionth of the steps would not do it
    spent = sum(float(row["perf/step_seconds"]) for row in rows)
    assert budget <= spent < budget + 2 * max(float(row["perf/step_seconds"]) for row in rows)
    assert rows[-1]["val/text_to_video/R@1"]  # validated at the end
    checkpoint = (run / "checkpoints/last.ckpt").read_bytes()
    capsys.readouterr()
    assert main(fit_arguments(tiny_shards, run, *options, "--ckpt_path=last")) == 0
    assert (
        f"is trained: step {len(rows)}. More: --run.time_budget_seconds 6"
        in capsys.readouterr().out
    )
    assert len(read_losses(run)) == len(rows)
    assert (run / "checkpoints/last.ckpt").read_bytes() == checkpoint


@pytest.mark.parametrize(("seconds", "share"), [(9.0, 0.0), (55.0, 0.5), (100.0, 1.0)])
def test_time_leads_only_beyond_a_slack(seconds: float, share: float) -> None:
    clock, module = StepClock(), tiny_module()
    clock.training_seconds = seconds
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    TimeBudget(clock, 100.0).on_train_start(trainer, module)
    assert module.time_share == pytest.approx(share)


@pytest.mark.slow
@pytest.mark.parametrize(("interval", "steps"), [(4, [3, 5]), (0, [])])
def test_last_step_has_a_row_unless_nothing_is_logged(
    tiny_shards: Path, tmp_path: Path, interval: int, steps: list[int]
) -> None:
    run = tmp_path / "run"
    options = [f"--trainer.log_every_n_steps={interval}", "--trainer.max_steps=6"]
    assert main(fit_arguments(tiny_shards, run, *options, "--trainer.limit_val_batches=0")) == 0
    rows = read_rows(run) if steps else []
    assert [int(row["step"]) for row in rows] == steps
    assert all(row["train/loss"] and row["perf/step_seconds"] for row in rows)


def test_resumed_run_that_has_nothing_left_says_so(
    tiny_shards: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    assert main(fit_arguments(tiny_shards, run, "--ckpt_path=last")) == 0
    assert "is trained: step 10" in capsys.readouterr().out


def test_validate_repeats_the_metrics_of_the_last_validation(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = trained_run / "config.yaml"
    assert main(["validate", f"--config={config}", "--ckpt_path=last"]) == 0
    printed = capsys.readouterr().out.splitlines()
    last = read_rows(trained_run)[-1]
    for direction in DIRECTIONS:
        title = direction.replace("_to_", " → ")
        line = next(line for line in printed if line.strip().startswith(title))
        assert f"MedR {float(last[f'val/{direction}/MedR']):5.1f}" in line
        queries = int(float(last[f"val/{direction}/num_queries"]))
        candidates = float(last[f"val/{direction}/num_candidates"])
        assert f"({queries} queries among {candidates:.0f} " in line
        assert line.endswith(f"chance {100 / candidates:.3g} %)")


def test_predict_writes_the_embeddings_of_the_set(trained_run: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    run = shutil.copytree(trained_run, tmp_path / "run")
    more = [f"--run.dir={run}", "--trainer.limit_predict_batches=2"]
    assert main(["predict", f"--config={run / 'config.yaml'}", "--ckpt_path=last", *more]) == 0
    out = run / "embeddings.safetensors"
    with safe_open(out, "pt") as file:
        assert file.get_tensor("video_va").shape == (16, 24)
        assert len(file.metadata()["keys"].split(",")) == 16


def test_fresh_run_never_overwrites_another(
    tiny_shards: Path, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained_run / "metrics.csv").read_text()
    assert main(fit_arguments(tiny_shards, trained_run)) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert (trained_run / "metrics.csv").read_text() == before


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "foreign"])
def test_file_that_is_no_checkpoint_is_named_with_the_remedy(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path, whole = tmp_path / "x.ckpt", (trained_run / "checkpoints" / "last.ckpt").read_bytes()
    torch.save({"weight": torch.zeros(2)}, path)
    others = {"truncated": whole[: len(whole) // 2], "text": b"no checkpoint", "empty": b""}
    path.write_bytes(others.get(damage, path.read_bytes()))
    config = trained_run / "config.yaml"
    assert main(["validate", f"--config={config}", f"--ckpt_path={path}"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    foreign = damage == "foreign"
    fault = "not a checkpoint of a training run" if foreign else "damaged, or no checkpoint"
    assert f"vatt: {path} is {fault}: " in message
    assert "give --ckpt_path" in message


@pytest.mark.slow
def test_run_goes_on_with_its_own_tokenizer_and_refuses_another(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, run = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(tiny_shards, shards)
    short = ["--trainer.max_steps=3", "--trainer.num_sanity_val_steps=0"]
    assert main(fit_arguments(shards, run, *short)) == 0
    shutil.rmtree(shards / "train")  # and the tokenizer beside the shards
    arguments = [f"--config={run / 'config.yaml'}", "--ckpt_path=last"]
    assert main(["validate", *arguments]) == 0
    other = tmp_path / "other.json"
    Tokenizer.train(["quite other words"], 512).save(other)
    capsys.readouterr()
    assert main(["validate", *arguments, f"--data.init_args.tokenizer={other}"]) == 1
    assert "trained with another tokenizer" in capsys.readouterr().err


def test_checkpoint_of_another_geometry_is_refused_by_name(
    tiny_shards: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained_run / "checkpoints" / "last.ckpt"
    more = [f"--ckpt_path={checkpoint}", "--model.init_args.model.d_post=48"]
    assert main(fit_arguments(tiny_shards, tmp_path / "run", *more)) == 1
    assert "d_post is 32 there and 48 here" in capsys.readouterr().err


@pytest.mark.slow
def test_run_goes_on_from_a_model_whose_parts_stood_in_another_order(
    tiny_shards: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained_run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    last = tmp_path / "reversed.ckpt"
    checkpoint["state_dict"] = dict(reversed(checkpoint["state_dict"].items()))
    optimizer = checkpoint["optimizer_states"][0]
    turned = [
        optimizer["state"][index]
        for group in optimizer["param_groups"]
        for index in reversed(group["params"])
    ]
    optimizer["state"] = dict(enumerate(turned))
    torch.save(checkpoint, last)
    losses = []
    for number, start in enumerate((path, last)):
        more = [f"--ckpt_path={start}", f"--trainer.max_steps={STEPS + 3}"]
        assert main(fit_arguments(tiny_shards, tmp_path / str(number), *more)) == 0
        losses.append(read_losses(tmp_path / str(number)))
    assert losses[0] == losses[1]
    assert len(losses[0]) >= 3
    # torch takes such state in silence, and its fused kernels then write into foreign memory
    torch.save({**checkpoint, "state_dict": torch.load(path)["state_dict"]}, last)
    capsys.readouterr()
    more = [f"--ckpt_path={last}", f"--trainer.max_steps={STEPS + 3}"]
    assert main(fit_arguments(tiny_shards, tmp_path / "refused", *more)) == 1
    message = capsys.readouterr().err
    assert "the optimiser's state exp_avg of network." in message
    assert "init_from" in message


def test_word_vectors_of_a_file_are_kept_by_a_run_and_by_its_resume(
    tiny_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [line.split() for line in ShardSet(tiny_shards / "train").captions()]
    word = Counter(one.lower() for line in words for one in line if one.isalpha()).most_common(1)
    vectors = tmp_path / "vectors.txt"
    vectors.write_text(" ".join([word[0][0], *(str(0.25 * i) for i in range(16))]) + "\n")
    more = [
        f"--model.init_args.text_vectors={vectors}",
        "--model.init_args.model.text.train_embedding=false",
    ]
    assert main(fit_arguments(tiny_shards, tmp_path / "run", *more)) == 0
    assert "has vectors for 1 of the" in caplog.text
    vectors.unlink()  # a resumed run does not need it
    resume = [*more, "--ckpt_path=last", f"--trainer.max_steps={STEPS + 2}"]
    assert main(fit_arguments(tiny_shards, tmp_path / "run", *resume)) == 0
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    table = torch.load(path)["state_dict"]["network.text_tokens.embedding.weight"]
    assert (table == 0.25 * torch.arange(16)).all(dim=1).sum() == 1
    assert main(fit_arguments(tiny_shards, tmp_path / "other", more[1])) == 0
    assert "the word vectors are random: they stay so" in caplog.text


def test_loss_that_is_not_finite_stops_the_run_and_names_step_and_clips(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    more = [
        "--model.init_args.optimizer.name=sgd",
        "--model.init_args.optimizer.learning_rate=1e38",
    ]
    more += ["--trainer.gradient_clip_val=null"]
    assert main(fit_arguments(tiny_shards, run, *more)) == 1
    message = capsys.readouterr().err
    assert "the loss is not finite at step 2" in message
    assert "video-audio nan" in message
    assert "000" in message.split("Clips of the batch: ")[1]  # keys of the corpus


def breaking_run(shards: Path, run: Path, first: int, count: int, *more: str) -> int:
    breaks = "--trainer.callbacks+=training_runs.BreakGradients"
    breaks = [breaks, f"--trainer.callbacks.first={first}", f"--trainer.callbacks.count={count}"]
    steps = ["--trainer.max_steps=30", "--trainer.limit_val_batches=0"]
    return main(fit_arguments(shards, run, *breaks, *steps, *more))


def non_finite(value: Any) -> bool:
    """Whether a checkpoint has a NaN or an infinity."""
    if isinstance(value, torch.Tensor):
        return not value.isfinite().all()
    parts = value.values() if isinstance(value, dict) else value
    return isinstance(value, dict | list) and any(map(non_finite, parts))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_step_whose_gradients_are_not_finite_is_left_out(
    tiny_shards: Path, tmp_path: Path, name: str
) -> None:
    option = f"--model.init_args.optimizer.name={name}"
    assert breaking_run(tiny_shards, tmp_path / "run", 4, 3, option) == 0
    rows = read_rows(tmp_path / "run")
    assert [float(row["train/skipped_steps"]) for row in rows[:9]] == [0, 0, 0, 0, 1, 1, 1, 0, 0]
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert not non_finite(checkpoint)
    assert float(rows[-1]["train/loss"]) < float(rows[0]["train/loss"])


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 1, 8, 9])
@pytest.mark.parametrize(
    "option",
    [
        "--trainer.gradient_clip_val=1.0",
        "--trainer.gradient_clip_val=null",
        "--model.init_args.micro_batch_size=2",
        "--trainer.accumulate_grad_batches=2",
        "--run.ema_decay=0.9",
    ],
)
def test_no_checkpoint_has_a_broken_step_whenever_it_comes(
    tiny_shards: Path, tmp_path: Path, step: int, option: str
) -> None:
    run, every = tmp_path / "run", "--run.keep_checkpoints.every_n_steps=1"
    assert breaking_run(tiny_shards, run, step, 1, option, every, "--trainer.max_steps=10") == 0
    paths = list((run / "checkpoints").iterdir())
    assert len(paths) == 12
    assert not any(non_finite(torch.load(path, weights_only=True)) for path in paths)


def test_run_whose_gradients_stay_broken_ends_and_names_the_clips(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert breaking_run(tiny_shards, tmp_path / "run", 3, 99) == 1
    message = capsys.readouterr().err
    assert "gradients of the last 10 steps before step 15 were not finite" in message
    assert "000" in message.split("Clips of the batch: ")[1]


def test_accumulated_steps_count_optimizer_steps(tiny_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--trainer.accumulate_grad_batches=2", "--trainer.max_steps=4"]
    more += ["--trainer.limit_val_batches=0"]
    assert main(fit_arguments(tiny_shards, run, *more)) == 0
    assert sorted(read_losses(run)) == [0, 1, 2, 3]


def test_failed_write_leaves_the_previous_checkpoint_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(1)}, path)
    large = {"step": torch.tensor(2), "weights": torch.zeros(1_000_000)}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # as if the disk were full
        with pytest.raises(OSError, match="checkpoint"):
            AtomicCheckpointIO().save_checkpoint(large, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.load(path, weights_only=True)["step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_checkpoint_that_the_disk_spoiled_takes_the_place_of_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": torch.tensor(1)}, path)
    save, values = torch.save, bytes(range(64))
    losses = {"data/0": (values, values[::-1]), "table of contents": (b"PK\5\6", b"")}

    def save_and_lose(state: dict[str, Any], file: Any) -> None:
        buffer = io.BytesIO()
        save(state, buffer)
        file.write(buffer.getvalue().replace(*losses[part]))

    monkeypatch.setattr(torch, "save", save_and_lose)
    for part in losses:
        with pytest.raises(
            CheckpointError, match=rf"last.ckpt was not written .*{part} is damaged"
        ):
            AtomicCheckpointIO().save_checkpoint({"step": torch.arange(64).byte()}, path)
    assert torch.load(path, weights_only=True)["step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("kind", ["weights", "exp_avg_sq"])
def test_state_that_is_not_finite_is_named_and_not_saved(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    run = tmp_path / "run"
    breaks = ["--trainer.callbacks+=training_runs.BreakState", "--trainer.callbacks.step=9"]
    assert main(fit_arguments(tiny_shards, run, *breaks, f"--trainer.callbacks.kind={kind}")) == 1
    message = capsys.readouterr().err
    name = (
        "network.video_tokens.agg" if kind == "weights" else f"{kind} of network.video_tokens.agg"
    )
    assert f"the state after step 9 is not finite and is not saved: {name}. " in message
    assert "000" in message.split("Clips of the batch: ")[1]
    steps = {path.name: read_steps(path) for path in (run / "checkpoints").iterdir()}
    assert steps == {"last.ckpt": 6, "previous.ckpt": 3}


def test_module_is_usable_without_the_command_line() -> None:
    module = tiny_module()
    batch = Batch(
        video=torch.randint(0, 255, (4, 4, 32, 32, 3), dtype=torch.uint8),
        audio=torch.rand(4, 6_400),
        text=torch.randint(1, 99, (4, 2, 5)),
    )
    output = module.loss(module.network(batch), batch)
    assert output.total.isfinite()
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    checkpoint["vatt_config"]["video"]["num_frames"] = 8
    with pytest.raises(UserError, match="video.num_frames is 8 there and 4 here"):
        module.on_load_checkpoint(checkpoint)
    with pytest.raises(UserError, match="it has no 'vatt_config'"):
        module.on_load_checkpoint({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": replace(TINY, dropout=0.5), "drop_token": 0.1, "audio_drop_token": 0.2}, ""),
        ({"video_encoder": TINY}, ""),  # the one that the tower has anyway
        ({"video_encoder": replace(TINY, num_layers=3)}, "video_encoder.num_layers is 3 there"),
    ],
)
def test_geometry_is_what_the_weights_depend_on(changes: dict[str, Any], message: str) -> None:
    ours = replace(preset("tiny"), arrangement="specific")
    module = tiny_module(ours)
    checkpoint = {"vatt_config": replace(ours, **changes).to_dict()}
    refuses = pytest.raises(UserError, match=message) if message else contextlib.nullcontext()
    with refuses:
        module.on_load_checkpoint(checkpoint)


def test_numbers_are_logged_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = {}
    monkeypatch.setattr(
        LightningModule, "log", lambda _, name, value, **__: logged.update({name: value})
    )
    module = tiny_module().to("meta")  # as on a GPU: a copy there would wait for it
    module.log("a", 0.25)
    module.log("b", 0.5, sync_dist=True)
    assert logged == {"a": torch.tensor(0.25), "b": 0.5}


def test_non_finite_loss_is_an_error_for_users() -> None:
    assert issubclass(NonFiniteLossError, UserError)


def tiny_module(config: VATTConfig | None = None) -> PretrainModule:
    schedule = ScheduleConfig(max_steps=10, warmup_steps=1)
    return PretrainModule(config or preset("tiny"), LossConfig(), OptimizerConfig(), schedule)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_ranks_are_joined_to_the_set_without_its_repeated_records(world_size: int) -> None:
    size = 7
    mask = torch.ones(size, dtype=torch.bool)
    table = EmbeddingTable(
        keys=tuple(f"clip {index}" for index in range(size)),
        video_va=torch.randn(size, 4),
        audio_va=torch.randn(size, 4),
        video_vt=None,
        text_vt=None,
        video_mask=mask,
        audio_mask=mask,
        text_mask=mask[:, None],
    )
    rows = range(-(-size // world_size))  # as vatt.data.samples gives them out
    parts = [
        table.select([(rank + world_size * row) % size for row in rows])
        for rank in range(world_size)
    ]
    joined = join_ranks(parts)
    assert joined.keys == table.keys
    assert torch.equal(joined.video_va, table.video_va)
    cut = join_ranks([part.select([0]) for part in parts])  # limit_val_batches
    assert cut.keys == table.keys[:world_size]
