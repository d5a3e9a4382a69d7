"""Marks of tests that compile: torch itself warns there."""

import pytest

LOADS_COMPILER = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
COMPILES = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
