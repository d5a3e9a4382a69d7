"""The fake GPU finds what it is to find, and the smallest recipe keeps to its numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_gpu
import gpu_predictions
import pytest
from corpus import made_once

pytestmark = pytest.mark.skipif(fake_gpu.why_not() is not None, reason=str(fake_gpu.why_not()))
OnGpu = Callable[[str, Any], Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, on_fake_gpu: OnGpu) -> dict[str, Any]:
    """The smallest recipe and some operators, in one process for all tests."""

    def make(out: Path) -> None:
        out.mkdir()
        (out / "found.json").write_text(json.dumps(on_fake_gpu("gpu_plants:tiny", None)))

    return json.loads((made_once(tmp_path_factory, "gpu", make) / "found.json").read_text())


def test_memory_is_that_of_living_storages_in_blocks(tiny: dict[str, Any]) -> None:
    found = tiny["operators"]
    assert (found["live"], found["freed"], found["peak"]) == (8192, 4096, 8192)


def test_a_kernel_is_an_operator_that_starts_work(tiny: dict[str, Any]) -> None:
    assert tiny["operators"]["kernels"] == 2


@pytest.mark.parametrize(
    "name", ["item", "if", "nonzero", "mask", "inverse", "to host", "to device", "number"]
)
def test_an_operator_that_waits_for_the_device_is_a_host_wait(
    tiny: dict[str, Any], name: str
) -> None:
    assert tiny["operators"][name] == 1


@pytest.mark.parametrize("name", ["to device, not blocking", "product"])
def test_other_operators_are_not(tiny: dict[str, Any], name: str) -> None:
    assert tiny["operators"][name] == 0


def test_tensors_of_two_devices_are_an_error(tiny: dict[str, Any]) -> None:
    assert tiny["operators"]["mix"] == "FakeTensorDeviceMismatchError"


def test_the_smallest_recipe_keeps_to_its_numbers(tiny: dict[str, Any]) -> None:
    gpu_predictions.check("tiny, 1 GPU", tiny["recipe"])


@pytest.mark.slow
def test_a_planted_fault_fails_the_check_of_a_recipe(on_fake_gpu: OnGpu) -> None:
    found = on_fake_gpu("gpu_plants:planted", None)
    assert found.pop("mix") == "FakeTensorDeviceMismatchError"
    gpu_predictions.check("tiny, 1 GPU", found.pop("none"))
    for fault, message in (("wait", "host waits"), ("copy", "host waits"), ("leak", "MiB")):
        with pytest.raises(AssertionError, match=message):
            gpu_predictions.check("tiny, 1 GPU", found[fault])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_memory_agrees_with_the_tracker_of_torch(on_fake_gpu: OnGpu, name: str) -> None:
    found = on_fake_gpu("gpu_plants:second_opinion", name)
    assert found["meter"] == pytest.approx(found["tracker"], rel=0.02)
    assert found["meter"] > 5  # GiB
