"""Media files of a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from vatt.errors import ShardError

# Of a sample with several media, the one whose extension comes first here counts.
MEDIA_EXTENSIONS = (
    *("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg", "ts", "flv", "wmv", "ogv", "3gp"),
    *("gif", "m4a", "mp3", "wav", "flac", "ogg", "opus", "aac", "wma"),
    *("jpg", "jpeg", "png", "webp", "bmp"),
)


def find_media(folder: Path) -> list[str]:
    """Paths of all media files under a folder, relative to it, sorted.

    Raises:
        ShardError: the folder does not exist or contains no media.
    """
    if not folder.is_dir():
        raise ShardError(f"no media folder {folder}: correct the path")
    names = sorted(walk_media(folder))
    if not names:
        shards = "; its tars are shards already" if any(folder.glob("*.tar")) else ""
        raise ShardError(
            f"{folder} holds no media: looked for the extensions {', '.join(MEDIA_EXTENSIONS)}"
            + shards
        )
    return names


def walk_media(folder: Path) -> Iterator[str]:
    """Walks each folder once, even if links lead to it; by its own path if inside `folder`."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for name, folders, files in os.walk(waiting.pop(0)):
            parent, real = Path(name), os.path.realpath(name)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            links += [path for inner in folders if (path := parent / inner).is_symlink()]
            for file in files:
                if not file.startswith(".") and Path(file).suffix[1:].lower() in MEDIA_EXTENSIONS:
                    yield (parent / file).relative_to(folder).as_posix()
        waiting += sorted(links)
