"""Opening media: files, bytes, ranges of shards, file objects and URLs; errors with a remedy."""

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.error
import av.logging
from av.container import InputContainer

from vatt.errors import MediaError
from vatt.media.encryption import has_protection
from vatt.media.png_bomb import MAX_METADATA_BYTES, has_metadata_bomb
from vatt.media.source import Damage, FileRange, MediaSource, is_web, source_name

# What FFmpeg may open. A file can name further files or addresses (playlists do): only a URL may
# lead to the network, and only a local path to other local files.
_PATH_OPTIONS = {"protocol_whitelist": "file,crypto,data"}
_URL_OPTIONS = {"protocol_whitelist": "http,https,tcp,tls,httpproxy,crypto,data"}
_BYTES_OPTIONS = {"protocol_whitelist": "data"}

CONVERT = "convert it, for example to H.264 and AAC"
ENCRYPTED = "is encrypted (DRM): get it without protection, or leave it out"
MAX_FRAME_PIXELS = 1 << 27  # 16,384 × 8,192: a frame then takes 0.2 GB decoded
URL_TIMEOUT_SECONDS = 30.0  # to connect, and for each read
# Titles and the like need not be UTF-8. From 19 on PyAV reads such ones by itself.
ANY_TEXT: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
)


class RangeReader:
    """Seekable file object of a `FileRange`, which FFmpeg reads through PyAV.

    On clips in a shard it is as fast as FFmpeg's own `subfile` protocol and as reading the range
    into memory first. Unlike these, it works with any path and needs no copy.
    """

    def __init__(self, file_range: FileRange) -> None:
        self.name = file_range.path
        self._range = file_range
        self._position = 0
        self._descriptor = file_range.open()

    def read(self, size: int) -> bytes:
        """Reads at most `size` bytes; b"" at the end of the range."""
        size = min(size, self._range.size - self._position)
        if size <= 0:
            return b""
        chunk = os.pread(self._descriptor, size, self._range.offset + self._position)
        self._position += len(chunk)
        return chunk

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position, as `io.IOBase.seek` does."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._range.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Position in the range."""
        return self._position

    def close(self) -> None:
        """Closes the file descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextmanager
def open_media(source: MediaSource) -> Iterator[InputContainer]:
    """Context that opens and closes a source; every fault in it becomes a `MediaError`.

    Raises:
        MediaError: the source cannot be opened, or the block failed because of it.
    """
    file: Any = None
    try:
        file, options = _ffmpeg_input(source)
        _refuse_bomb(file)
        with av.open(
            file,
            "r",
            options={"max_pixels": str(MAX_FRAME_PIXELS)},  # FFmpeg decodes when it opens files
            container_options=options,
            timeout=URL_TIMEOUT_SECONDS if options is _URL_OPTIONS else None,
            **ANY_TEXT,
        ) as container:
            yield container
    except Damage as fault:
        reason = ENCRYPTED if _is_protected(file) else str(fault)
        raise MediaError(source_name(source), reason) from None
    except (av.error.FFmpegError, OSError) as fault:
        reason = ENCRYPTED if _is_protected(file) else _human_reason(fault, source)
        raise MediaError(source_name(source), reason) from fault
    finally:
        if isinstance(file, RangeReader):
            file.close()


class _Log:
    """FFmpeg's log, which the whole process shares: the first listener opens it, the last restores.

    PyAV leaves it closed, because messages of FFmpeg's own threads can block Python; here FFmpeg
    has no threads.
    """

    lock = threading.Lock()
    num_listeners = 0
    before: tuple[int | None, bool] = (None, True)


@contextmanager
def ffmpeg_errors() -> Iterator[list[tuple[int, str, str]]]:
    """Errors that FFmpeg reports in this thread: level, name of the component, and text."""
    with _Log.lock:
        if not _Log.num_listeners:
            level = av.logging.get_level()
            _Log.before = (level, av.logging.get_skip_repeated())
            av.logging.set_level(max(level or 0, av.logging.ERROR))
            av.logging.set_skip_repeated(False)
        _Log.num_listeners += 1
    messages: list[tuple[int, str, str]] = []
    try:
        with av.logging.Capture() as heard:
            yield messages
        messages += [message for message in heard if message[0] <= av.logging.ERROR]
    finally:
        with _Log.lock:
            _Log.num_listeners -= 1
            if not _Log.num_listeners:
                level, skip_repeated = _Log.before
                av.logging.set_level(level)
                av.logging.set_skip_repeated(skip_repeated)


def _ffmpeg_input(source: MediaSource) -> tuple[Any, dict[str, str]]:
    """Input for FFmpeg, and the options that limit what FFmpeg may open on its own."""
    if isinstance(source, FileRange):
        return RangeReader(source), _BYTES_OPTIONS
    if isinstance(source, bytes):
        return io.BytesIO(source), _BYTES_OPTIONS
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if is_web(source):
            return path, _URL_OPTIONS
        if "%" in path:  # FFmpeg's image reader would take it for a pattern of file names
            return RangeReader(FileRange(path, 0, Path(path).stat().st_size)), _PATH_OPTIONS
        return "file:" + path, _PATH_OPTIONS  # so that `a:b.mp4` is not taken for protocol `a`
    if not hasattr(source, "read"):
        kind = type(source).__name__
        raise TypeError(f"media are a path, URL, bytes, FileRange or binary file, got {kind}")
    if hasattr(source, "seek") and getattr(source, "seekable", lambda: True)():
        source.seek(0)  # FFmpeg counts from the beginning, wherever an earlier reader has stopped
    return source, _BYTES_OPTIONS


def _refuse_bomb(file: Any) -> None:
    """Refuses a PNG whose metadata would fill the memory, if the source can be read twice."""
    if _ask(file, has_metadata_bomb):
        raise Damage(
            f"is a PNG whose metadata unpack to more than {MAX_METADATA_BYTES} bytes: strip them "
            "(iCCP, zTXt), or leave it out"
        )


def _is_protected(file: Any) -> bool:
    """Whether a source that FFmpeg cannot read is encrypted, if the source can be read twice."""
    try:
        return _ask(file, has_protection)
    except OSError:  # the fault of the source that is told already
        return False


def _ask(file: Any, question: Callable[[Any], bool]) -> bool:
    """Answer of a reader of bytes on FFmpeg's input; False if it cannot be read twice."""
    if isinstance(file, str):
        path = Path(file.removeprefix("file:"))
        if is_web(file) or not path.is_file():  # FFmpeg says what is wrong; a pipe has one reader
            return False
        with path.open("rb") as opened:
            return question(opened)
    if file is None or not hasattr(file, "seek") or not getattr(file, "seekable", lambda: True)():
        return False
    file.seek(0)
    answer = question(file)
    file.seek(0)
    return answer


def _human_reason(fault: Exception, source: MediaSource) -> str:
    """Message, with a remedy, for an error of FFmpeg or of the system."""
    if isinstance(source, str | os.PathLike | FileRange) and not is_web(source):
        if isinstance(fault, FileNotFoundError):
            return "there is no such file: check the path"
        if isinstance(fault, IsADirectoryError):
            return "is a folder: give a media file"
        if isinstance(fault, PermissionError):
            return "may not be read: check its permissions"
    if isinstance(fault, TimeoutError | av.error.ExitError):
        limit = f"{URL_TIMEOUT_SECONDS:.0f} s"
        return f"gave no answer within {limit}: check the address, or download it first"
    if isinstance(fault, av.error.HTTPError | ConnectionError) or is_web(source):
        return f"could not be fetched ({_detail(fault)}): check the address, or download it first"
    if isinstance(fault, av.error.DecoderNotFoundError):
        return "is in a format that this build of FFmpeg does not decode: " + CONVERT
    if isinstance(fault, av.error.FFmpegError):
        detail = _detail(fault)
        return f"is damaged, incomplete, or no media at all ({detail}): copy or encode it again"
    return f"cannot be read ({_detail(fault)})"


def _detail(fault: Exception) -> str:
    return getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
