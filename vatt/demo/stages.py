"""Stages of a long work: their lines on the screen, and a record of those that are done."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vatt.system.files import read_json, write_atomically


@dataclass
class Stage:
    """Result of a stage, as it is printed at its end.

    Args:
        result: What it did.
        stands: Whether it was done before, so that there was nothing to do.
    """

    result: str = "done"
    stands: bool = False


@contextlib.contextmanager
def stage(name: str, title: str = "", seconds: dict[str, float] | None = None) -> Iterator[Stage]:
    """Context that prints the title of a stage, if it has one, and at its end result and time.

    Args:
        name: Name of the stage.
        title: What it will do.
        seconds: Collects the time that it took, by name.
    """
    if title:
        print(f"── {name}: {title}", flush=True)
    current, started = Stage(), time.monotonic()
    yield current
    took = round(time.monotonic() - started, 1)
    if seconds is not None:
        seconds[name] = took
    time_words = "done before" if current.stands else f"{took:.0f} s"
    print(f"{name:8} {current.result} ({time_words})", flush=True)


class StageRecord:
    """Record of finished stages, with their inputs and results, in a JSON file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.content: dict[str, Any] = read_json(path) if path.exists() else {}

    def run(
        self,
        name: str,
        inputs: Callable[[], Any],
        work: Callable[[], dict[str, Any]],
        made: Path,
    ) -> dict[str, Any]:
        """Does a stage, unless it was done with the same inputs.

        Args:
            name: Name of the stage.
            inputs: Gives all that the result depends on, as JSON values. It is asked again after
                the work, which may leave out bad inputs.
            work: Does the stage; returns JSON values, of which `result` is a line for people.
            made: File or folder that the stage makes.

        Returns:
            What `work` returned, now or before.
        """
        done = self.content.get(name, {})
        with stage(name) as current:
            current.stands = made.exists() and done.get("inputs") == _digest(inputs())
            if not current.stands:
                done = work()
                self.write(name, {"inputs": _digest(inputs()), **done})
            current.result = done["result"]
        return done

    def begin(self, name: str, inputs: Any) -> bool:
        """Records that a stage begins; whether it was begun with the same inputs before."""
        key, digest = f"{name} begun", _digest(inputs)
        goes_on = bool(self.content.get(key) == digest)
        self.content.pop(name, None)  # what was done before makes room
        self.write(key, digest)
        return goes_on

    def write(self, name: str, value: Any) -> None:
        """Stores a value under a name."""
        self.content[name] = value
        write_atomically(self._path, json.dumps(self.content, indent=1).encode())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
