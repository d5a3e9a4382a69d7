"""Inputs of `vatt extract`, found in folders, media files, lists, patterns and shards."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vatt.errors import MediaError, UserError
from vatt.media.folder import find_media
from vatt.media.source import FileRange, is_web
from vatt.shards.places import holds_shards_only, is_remote
from vatt.shards.shard_set import ShardSet

LISTS = (".txt", ".list")


@dataclass(frozen=True)
class Item:
    """An input of `vatt extract`.

    Args:
        name: Name of its output without extension: a relative path, unique among the inputs.
        path: Path or URL of the file; "" for a sample of a shard.
        shards: Shards that hold the sample.
        sample: Index of the sample.
    """

    name: str
    path: str = ""
    shards: ShardSet | None = None
    sample: int = 0

    def locate(self) -> tuple[str | FileRange, str]:
        """Media of the input, and a stamp that changes with their content.

        Raises:
            MediaError: the media do not exist.
        """
        if self.shards is not None:
            window = self.shards[self.sample].media
            if window is None:
                raise MediaError(self.name, "has no media file")
            return window, f"{window.offset}+{window.size}"
        if is_web(self.path):
            return self.path, ""
        try:
            status = Path(self.path).stat()
        except OSError as error:
            raise MediaError(self.path, f"cannot be read: {error.strerror}") from error
        return self.path, f"{status.st_size}@{status.st_mtime_ns}"


def find_items(sources: Sequence[str]) -> list[Item]:
    """All inputs, sorted by name.

    Args:
        sources: Folders of media or of shards, addresses of shards, media files, URLs, patterns
            such as `videos/**/*.mp4`, and lists (`.txt`) with one path or URL per line.

    Raises:
        UserError: a source has no inputs, or two inputs have the same name.
        ShardError: a folder does not exist, or has no media or shards.
    """
    items: dict[str, Item] = {}
    for source in sources:
        found = list(_items_of(source))
        for item in found:
            if items.setdefault(item.name, item) != item:
                raise UserError(
                    f"two inputs are called {item.name}: extract them into folders of their own"
                )
        if not found:
            raise UserError(f"{source} names no media: correct the path, pattern or list")
    return [items[name] for name in sorted(items)]


def _items_of(source: str) -> Iterator[Item]:
    path = Path(source)
    if is_web(source) and not source.endswith((".tar", "/")):
        yield Item(_name_of(source), source)
    elif is_remote(source) or (path.is_dir() and holds_shards_only(path, None)):
        yield from _samples(ShardSet(source))
    elif path.is_dir():
        yield from (Item(name, str(path / name)) for name in find_media(path))
    elif path.is_file() and path.suffix.lower() in LISTS:
        yield from _lines(path)
    elif path.is_file():
        yield Item(path.name, source)
    elif glob.has_magic(source):
        found = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 - absolute ones, too
        yield from (Item(_name_of(one), one) for one in found if Path(one).is_file())
    else:
        raise UserError(f"there is no {source}: correct the path")


def _samples(shards: ShardSet) -> Iterable[Item]:
    for sample in range(len(shards)):
        tar = PurePosixPath(str(shards.shard(sample))).stem
        yield Item(f"{tar}/{shards.key(sample)}", shards=shards, sample=sample)


def _lines(path: Path) -> Iterator[Item]:
    """Items of a list; relative paths count from its folder."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no list of paths in UTF-8: {error}") from error
    for line in filter(None, map(str.strip, lines)):
        file = line if is_web(line) else str(path.parent / line)
        yield Item(_name_of(line), file)


def _name_of(path: str) -> str:
    """Relative path without `..`, for the output of a file in any folder."""
    normal = os.path.normpath(path.partition("://")[2] if is_web(path) else path)
    if normal.startswith(".."):
        normal = str(Path(normal).absolute().resolve())
    return PurePosixPath(normal).as_posix().lstrip("/")
