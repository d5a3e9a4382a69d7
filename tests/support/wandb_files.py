"""Offline runs of W&B, read back."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb

WANDB_BLOCK = 32 * 1024  # bytes; a chunk of a record has a header of 7 and crosses no block


def end_wandb() -> None:
    """Ends the W&B run, and its service: only then the end is on disk."""
    wandb.finish()
    wandb.teardown()


def read_records(piece: Path) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log format, with a header of 7 bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = piece.glob("*.wandb")
    content, place, parts = path.read_bytes(), 7, []
    while place + 7 <= len(content):
        left = WANDB_BLOCK - place % WANDB_BLOCK
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts.append(content[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def read_history(piece: Path) -> list[dict[str, Any]]:
    """What was logged, a row for each call."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item}
        for row in (r.history for r in read_records(piece) if r.HasField("history"))
    ]


def read_config(piece: Path) -> dict[str, Any]:
    """The run's configuration, as updated."""
    updates = [u for r in read_records(piece) if r.HasField("config") for u in r.config.update]
    return {
        update.key or "/".join(update.nested_key): json.loads(update.value_json)
        for update in updates
    }


def pieces(run: Path) -> list[Path]:
    """Folders of an offline run, one for each process, oldest first.

    They are whole after `end_wandb`.
    """
    return sorted((run / "wandb").glob("offline-run-*"))
