"""The fake GPU, compiled once for all processes of a test run and for later runs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from fake_gpu import run_on_fake_gpu


@pytest.fixture(scope="session")
def on_fake_gpu(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Any], Any]:
    """`run_on_fake_gpu` with a folder for the compiled library."""
    cache = getattr(pytestconfig, "cache", None)  # absent with -p no:cacheprovider
    folder = tmp_path_factory.getbasetemp().parent if cache is None else cache.mkdir("fake_gpu")
    return partial(run_on_fake_gpu, folder=folder)
