"""Every shipped recipe on the fake GPU, with its sizes, against the committed predictions."""

import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import fake_gpu
import gpu_predictions
import pytest
from gpu_predictions import CASES, PAGE, USABLE_GIB, peak_gib

from vatt.config.shipped import shipped_configs

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = gpu_predictions.read()
# FSDP2 needs a driver; a sweep is no recipe; an open model's size is that of the model chosen
NOT_MEASURED = {"overlay_fsdp", "sweep", "finetune_contrastive"}
SLURM_GPUS = 8  # of a node, as in scripts/slurm_pretrain.sh


@pytest.mark.slow
@pytest.mark.skipif(fake_gpu.why_not() is not None, reason=str(fake_gpu.why_not()))
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_recipe_keeps_to_its_numbers(
    on_fake_gpu: Callable[[str, Any], Any], case: dict[str, Any]
) -> None:
    (measured,) = on_fake_gpu("gpu_recipes:measure", [case])
    gpu_predictions.check(case["name"], measured)


def test_every_shipped_config_has_a_prediction() -> None:
    assert list(NUMBERS) == [case["name"] for case in CASES]
    named = {name for case in CASES for name in case["configs"].split(" + ")}
    assert set(shipped_configs()) - named <= NOT_MEASURED


@pytest.mark.parametrize("name", NUMBERS)
def test_a_recipe_fits_into_80_gb(name: str) -> None:
    assert peak_gib(NUMBERS[name]) <= USABLE_GIB


@pytest.mark.parametrize("name", NUMBERS)
def test_the_host_waits_only_for_the_check_of_sgd(name: str) -> None:
    assert NUMBERS[name]["waits"] <= (1 if "finetune" in name else 0)


def test_the_page_has_the_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert gpu_predictions.memory_table(NUMBERS) in page
    assert gpu_predictions.steps_table(NUMBERS) in page


def documented() -> list[tuple[str, list[str]]]:
    """Commands of README, docs and comments of configs and scripts that start a training."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    pages += [*(ROOT / "configs").glob("*.yaml"), ROOT / "scripts" / "slurm_pretrain.sh"]
    commands = []
    for page in sorted(pages):
        text = re.sub(r"^# ?", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for line in text.replace("\\\n", " ").splitlines():
            line = line.strip().lstrip("`").split("`")[0]
            if re.match(r"(torchrun .*)?vatt fit --|sbatch .*slurm_pretrain", line):
                commands.append((page.name, shlex.split(line, comments=True)))
    return commands


def run_of(command: list[str]) -> tuple[str, int]:
    """Shipped configs of a command, and the number of GPUs that it names or its recipe has."""
    words = " ".join(command).replace("=", " ").split()
    values = [*pairwise(words)]
    configs = " + ".join(value for word, value in values if word == "--config")
    numbers = {word: value for word, value in values if word.startswith("--")}
    if command[0] == "sbatch":
        return configs, int(numbers.get("--nodes", 1)) * SLURM_GPUS
    gpus = int(numbers.get("--trainer.devices", 1)) * int(numbers.get("--trainer.num_nodes", 1))
    if command[0] == "torchrun":
        assert int(numbers["--nproc-per-node"]) == gpus
    return configs, gpus


@pytest.mark.parametrize(("page", "command"), documented())
def test_a_documented_command_fits_the_gpus_that_it_names(page: str, command: list[str]) -> None:
    configs, gpus = run_of(command)
    if "/config.yaml" in configs or set(configs.split(" + ")) <= NOT_MEASURED:
        return  # a run that is resumed
    changed = "checkpoint_activations" in " ".join(command)
    measured = [
        case
        for case in CASES
        if (case["configs"], case["gpus"]) == (configs, gpus)
        and changed == ("checkpoint_activations" in " ".join(case["arguments"]))
    ]
    assert measured, f"no prediction for {configs} on {gpus} GPUs: add one to gpu_predictions"
    for case in measured:
        assert peak_gib(NUMBERS[case["name"]]) <= USABLE_GIB


def test_the_documented_commands_are_found() -> None:
    found = {(*run_of(command), page) for page, command in documented()}
    assert ("pretrain_ma_medium", 8, "README.md") in found
    assert ("pretrain_ma_medium", 32, "slurm_pretrain.sh") in found
    assert ("finetune_kinetics", 8, "finetune_kinetics.yaml") in found
    assert len(found) > 12
