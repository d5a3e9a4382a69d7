"""What is written down of an evaluation, and the paper's numbers beside it."""

import json

import torch

import vatt
from vatt.encoders.own import VATTEncoder
from vatt.errors import Fault
from vatt.evaluation.results import Results, results_table, write_results
from vatt.models.checkpoint import weights_digest

ROW = {"R@1": 8.25, "R@5": 20.0, "R@10": 30.5, "MedR": 44.0, "MeanR": 120.0}


def results(**changes):
    parts = {
        "task": "retrieval",
        "data_set": "msrvtt-1k",
        "protocol": {"num_windows": 4},
        "data": {"annotations": "a.csv"},
        "num_items": 998,
        "num_listed": 1000,
        "missing": [Fault("a.csv, line 12", "video9 has no file in videos")],
        "unreadable": [Fault("video3", "is damaged")],
        "metrics": {"text_to_video, embeddings": ROW, "video_to_text, embeddings": ROW},
    }
    return Results(**{**parts, **changes})


def test_the_papers_numbers_stand_in_brackets_behind_ours():
    table = results_table(results(), "specific")
    line = next(line for line in table.splitlines() if line.startswith("text_to_video"))
    assert "30.5 (29.7)" in line
    assert "44.0 (49)" in line
    assert "8.2" in line
    assert "VATT-MBS in the paper" in table
    assert "30.5 (23.6)" in results_table(results(), "agnostic")
    other = next(line for line in table.splitlines() if line.startswith("video_to_text"))
    assert "(" not in other
    assert "(" not in results_table(results(data_set="own"), "specific")


def test_a_part_of_a_set_does_not_stand_beside_the_number_of_the_whole():
    metrics = {"low-rank, mean of folds": {"top-1": 80.0}}
    whole = results(data_set="esc50", num_listed=2000, metrics=metrics)
    assert "80.0 (84.7)" in results_table(whole, "specific")
    part = results(data_set="esc50", num_listed=400, metrics=metrics)
    assert "(" not in results_table(part, "specific")


def test_the_table_says_what_it_was_computed_on_and_what_was_left_out():
    table = results_table(results(), "specific")
    assert "retrieval on 998 of 1,000 clips listed" in table
    assert "missing: a.csv, line 12: video9 has no file in videos" in table
    assert "unreadable: video3: is damaged" in table


def test_rows_may_have_other_columns():
    table = results_table(results(metrics={"a": {"R@1": 1.0}, "b": {"top-1": 2.0}}), "specific")
    assert table.splitlines()[-2].split() == ["b", "–", "2.0"]


def test_the_file_is_strict_json_with_model_data_and_published_numbers(tmp_path):
    torch.manual_seed(0)
    model = vatt.VATT(vatt.preset("tiny"))
    broken = {"text_to_video, embeddings": {**ROW, "MedR": float("inf")}}
    encoder = VATTEncoder(model, None, "cpu")
    path = write_results(results(metrics=broken), encoder, "models/tiny", tmp_path / "a" / "b")

    def refuse(name):
        raise AssertionError(name)

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["metrics"]["text_to_video, embeddings"]["MedR"] is None
    assert content["model"]["source"] == "models/tiny"
    assert content["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert content["missing"] == [
        {"where": "a.csv, line 12", "reason": "video9 has no file in videos"}
    ]
    published = {(p["row"], p["column"]): p["value"] for p in content["published"]}
    row = "text_to_video, embeddings"
    assert published == {(row, "R@10"): 23.6, (row, "MedR"): 67}  # the tiny one is agnostic


def test_the_digest_of_a_model_changes_with_one_weight():
    torch.manual_seed(0)
    model = vatt.VATT(vatt.preset("tiny"))
    before = weights_digest(model)
    assert weights_digest(model) == before
    next(model.parameters()).data.view(-1)[0] += 1
    assert weights_digest(model) != before
