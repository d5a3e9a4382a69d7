"""Retrieval by the published protocol in the validations of a run."""

import pytest
from rank_processes import run_vatt
from training_runs import fit_arguments, read_rows

from vatt.cli import main
from vatt.encoders.loading import load_encoder
from vatt.errors import UserError
from vatt.evaluation.zero_shot_retrieval import embed_items, evaluation_plan
from vatt.runs.retrieval_callback import RetrievalEvaluation
from vatt.sets.retrieval import read_shard_set

CALLBACK = "--trainer.callbacks+=vatt.runs.retrieval_callback.RetrievalEvaluation"


def options(shards, **settings):
    settings = {"data": shards / "train", "num_windows": 2, "num_workers": 0, **settings}
    return [CALLBACK, *(f"--trainer.callbacks.{name}={value}" for name, value in settings.items())]


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_logs_what_the_command_would_say_of_its_checkpoint(tiny_shards, tmp_path, world_size):
    run = tmp_path / "run"
    arguments = fit_arguments(tiny_shards, run, "--trainer.val_check_interval=10")
    arguments += options(tiny_shards, name="again")
    codes = run_vatt(arguments, world_size, tmp_path / "errors")
    assert codes == [0] * world_size, (tmp_path / "errors" / "0.txt").read_text()
    row = next(row for row in reversed(read_rows(run)) if row["again/num_clips"])
    assert float(row["again/num_clips"]) == 24
    encoder = load_encoder(next(run.rglob("last.ckpt")), device="cpu")
    items = read_shard_set(tiny_shards / "train").items
    tables = embed_items(encoder, items, evaluation_plan(encoder, num_windows=2))
    for averaging, directions in tables.metrics().items():
        assert len(directions) == 6
        for direction, columns in directions.items():
            for column, value in columns.items():
                found = float(row[f"again/{direction}/{averaging}/{column}"])
                assert found == pytest.approx(value, rel=1e-5)


@pytest.mark.slow
def test_it_takes_its_turn_every_so_many_validations(tiny_shards, tmp_path):
    run = tmp_path / "run"
    arguments = fit_arguments(tiny_shards, run, "--trainer.val_check_interval=2")
    every = options(tiny_shards, name="again", every_n_validations=2, num_windows=1)
    assert main([*arguments, "--trainer.max_steps=6", *every]) == 0
    measured = [int(row["step"]) for row in read_rows(run) if row["again/num_clips"]]
    assert measured == [1, 5]  # of validations after steps 1, 3 and 5


def test_what_is_wrong_in_its_settings_is_said_before_training(tiny_shards, tmp_path, capsys):
    arguments = fit_arguments(tiny_shards, tmp_path / "run")
    assert main([*arguments, *options(tiny_shards, data=tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
    with pytest.raises(UserError, match="at least 1 and num_workers"):
        RetrievalEvaluation("data", every_n_validations=0)
