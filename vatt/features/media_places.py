"""Locations of the media of features, which are stored with the vectors."""

from collections.abc import Mapping
from pathlib import Path

from vatt.errors import MediaError, ShardError
from vatt.media.source import FileRange
from vatt.shards.places import find_tars, is_remote, range_of
from vatt.shards.remote import RemoteShard

MEDIA, OFFSET, SIZE = "media", "offset", "size"  # in the metadata of features


def describe_media(media: str | FileRange) -> dict[str, str]:
    """Description of media by which `find_described` finds them again.

    Args:
        media: Path, URL, or the bytes of a tar shard.

    Returns:
        `media`: absolute path or address; for a sample of a shard also `offset` and `size` in
            bytes.
    """
    if isinstance(media, FileRange):
        shard = media.origin
        place = str(shard) if isinstance(shard, RemoteShard) else str(Path(media.path).absolute())
        return {MEDIA: place, OFFSET: str(media.offset), SIZE: str(media.size)}
    return {MEDIA: media if is_remote(media) else str(Path(media).absolute())}


def find_described(
    described: Mapping[str, str], source: str, folder: Path | None = None
) -> str | FileRange:
    """Media that `describe_media` described.

    Args:
        described: Result of `describe_media`; empty for features of earlier versions.
        source: Name of the input, a path in its folder.
        folder: Present folder of the media or shards. None: as described.

    Raises:
        MediaError: the media are missing.
    """
    place = described.get(MEDIA, "")
    if folder is not None:
        # under the name of the input, else under that of the file
        names = [Path(place).name] if OFFSET in described else [source, Path(place).name]
        places = [folder / name for name in names if name]
        place = str(next((one for one in places if one.is_file()), places[0]))
    if not place:
        raise MediaError(source, "its features do not say where it lies: give the folder")
    if OFFSET not in described:
        if not is_remote(place) and not Path(place).is_file():
            raise MediaError(place, "there is no such file any more: say where the media are")
        return place
    try:
        shard = next(iter(find_tars(place))) if is_remote(place) else Path(place)
    except ShardError as error:
        raise MediaError(place, str(error)) from error
    if isinstance(shard, Path) and not shard.is_file():
        raise MediaError(place, "there is no such shard any more: say where the shards are")
    return range_of(shard, int(described[OFFSET]), int(described[SIZE]))
