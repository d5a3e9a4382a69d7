"""Media files of a folder."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vatt.errors import ShardError
from vatt.media.source import is_web

SOUND_EXTENSIONS = ("m4a", "mp3", "wav", "flac", "ogg", "opus", "aac", "wma")
# Of a sample with several media, the one whose extension comes first here counts.
MEDIA_EXTENSIONS = (
    *("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg", "ts", "flv", "wmv", "ogv", "3gp"),
    *("gif", *SOUND_EXTENSIONS),
    *("jpg", "jpeg", "png", "webp", "bmp"),
)


def find_media(folder: Path, others: list[str] | None = None) -> list[str]:
    """Paths of all media files under a folder, relative to it, sorted.

    Args:
        folder: Folder to search, with its sub-folders.
        others: List that collects the paths of all other files that are not hidden.

    Raises:
        ShardError: the folder does not exist or contains no media.
    """
    if not folder.is_dir():
        raise ShardError(f"no media folder {folder}: correct the path")
    names: list[str] = []
    for name in sorted(_walk_files(folder)):
        if _is_media(name):
            names.append(name)
        elif others is not None:
            others.append(name)
    if not names:
        shards = "; its tars are shards already" if any(folder.glob("*.tar")) else ""
        raise ShardError(
            f"{folder} holds no media: looked for the extensions {', '.join(MEDIA_EXTENSIONS)}"
            + shards
        )
    return names


def walk_media(folder: Path) -> Iterator[str]:
    """Media files under a folder, relative to it, in no order."""
    return filter(_is_media, _walk_files(folder))


def names_media(text: str) -> bool:
    """Whether words mean media: a URL, an existing file, or what looks like a mistyped file."""
    if is_web(text):
        return True
    try:
        if Path(text).is_file():
            return True
    except (OSError, ValueError):  # longer than a name can be
        return False
    return " " not in text and _is_media(text)


def is_sound(name: str) -> bool:
    """Whether a name has an extension of files of sound."""
    return _extension(name) in SOUND_EXTENSIONS


def _is_media(name: str) -> bool:
    return _extension(name) in MEDIA_EXTENSIONS


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix[1:].lower()


def _walk_files(folder: Path) -> Iterator[str]:
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
                if not file.startswith("."):
                    yield (parent / file).relative_to(folder).as_posix()
        waiting += sorted(links)
