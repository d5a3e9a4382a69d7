"""What setup.py says, without running it."""

import ast
from pathlib import Path
from typing import Any

SETUP = Path(__file__).resolve().parents[2] / "setup.py"


def setup_argument(name: str) -> Any:
    """Argument of the call of `setup`, as it is written there."""
    tree = ast.parse(SETUP.read_text(encoding="utf-8"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    call = next(node for node in calls if getattr(node.func, "id", "") == "setup")
    return ast.literal_eval(next(one.value for one in call.keywords if one.arg == name))
