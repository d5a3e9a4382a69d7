"""Buckets and web servers, through fsspec, with retries if the network fails."""

import base64
import contextlib
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from vatt.errors import ShardError, UserError
from vatt.media.source import is_web
from vatt.shards.cache import cache_folder
from vatt.system.files import NO_SPACE
from vatt.system.workers import tell_alive

logger = logging.getLogger(__name__)

PAUSES_SECONDS = (1.0, 5.0, 15.0)  # before a download that broke off is tried again
STALL_SECONDS = 60.0  # a web server that sends nothing for so long has failed
# Extras with the back ends of kinds of addresses; other kinds need packages that fsspec names.
EXTRAS = {
    **dict.fromkeys(("http", "https"), "remote"),
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
}
# What the back ends raise beside OSError, if they are loaded.
_FAULTS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),  # what huggingface_hub takes from 2.0 on
)
# Of a file's description, in the order of trust; one of them names its version.
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "blob_id", "Last-Modified", "LastModified", "updated"),
    *("mtime", "created"),
)
_COMPARABLE = ("ETag", "etag", "md5Hash", "blob_id", "Last-Modified", "mtime")

T = TypeVar("T")


def open_store(address: str) -> tuple[Any, str]:
    """File system of an address, and the path in it.

    Raises:
        ShardError: the kind of address is unknown.
        UserError: the package for such addresses is missing.
    """
    kind = address.partition("://")[0]
    try:
        import fsspec

        return fsspec.core.url_to_fs(address, **(_web_options() if is_web(address) else {}))
    except ImportError as error:
        remedy = f'pip install "vatt[{EXTRAS[kind]}]"' if kind in EXTRAS else "install it"
        raise UserError(
            f"{kind}:// addresses need a package that is missing ({error}): {remedy}"
        ) from error
    except (OSError, ValueError) as error:
        raise ShardError(f"{without_query(address)} cannot be used: {error}") from error


def persist(address: str, action: Callable[[], T]) -> T:
    """Runs an action over the network, with retries if they can help.

    Args:
        address: Address for the error message.
        action: Action, which may run several times.

    Raises:
        ShardError: the action failed each time.
    """
    name = without_query(address)
    for attempt, pause in enumerate((*PAUSES_SECONDS, None), 1):
        try:
            return action()
        except faults() as error:
            if getattr(error, "errno", None) in NO_SPACE:
                raise ShardError(
                    f"no space left in {cache_folder()} for {name}: free some, set VATT_CACHE to a "
                    "folder on another disk, or VATT_CACHE_GIB to less"
                ) from error
            if pause is None or _is_missing(error) or _is_refused(error):
                reason = "there is nothing there" if _is_missing(error) else _reason(error)
                times = "" if attempt == 1 else f" in {attempt} attempts"
                raise ShardError(
                    f"{name} could not be read{times}: {reason}. Check the address, the network "
                    "and your access rights"
                ) from error
            logger.warning("%s: %s; tried again in %.0f s", name, _reason(error), pause)
            time.sleep(pause)
            tell_alive()
    raise AssertionError("the last attempt returns or raises")


def read_if_there(store: Any, address: str) -> bytes | None:
    """Content of a small file; None if it does not exist."""

    def read() -> bytes | None:
        try:
            return bytes(store.cat_file(place_of(store, address)))
        except faults() as error:
            if _is_missing(error):
                return None
            raise

    return persist(address, read)


def faults() -> tuple[type[BaseException], ...]:
    """Types of network errors that the loaded back ends raise."""
    modules = [(sys.modules.get(module), name) for module, name in _FAULTS]
    return (OSError, EOFError, *(getattr(module, name) for module, name in modules if module))


def checksum_of(detail: dict[str, Any]) -> tuple[str, str] | None:
    """Kind and hexadecimal digest of a file's content, if its store provides one.

    S3's ETag is not used: it is the MD5 for some files only, and does not say for which.
    """
    lfs = detail.get("lfs")
    if isinstance(lfs, dict) and lfs.get("sha256"):
        return "sha256", lfs["sha256"]
    encoded = detail.get("md5Hash") or detail.get("Content-MD5")
    return ("md5", base64.b64decode(encoded).hex()) if encoded else None


def version_of(detail: dict[str, Any]) -> tuple[str, str] | None:
    """Name and value of the property that tells a file's version."""
    return next(((name, str(detail[name])) for name in _VERSIONS if detail.get(name)), None)


def has_changed(detail: dict[str, Any], version: tuple[str, str]) -> bool:
    """Whether the version of a file has changed.

    Times are ignored, because some stores format them differently in listings and in queries.
    """
    name, value = version
    return name in _COMPARABLE and str(detail.get(name, value)).strip('"') != value.strip('"')


def forget_listing(store: Any, place: str) -> None:
    """Drops a cached listing: files may have been uploaded meanwhile."""
    with contextlib.suppress(*faults()):  # hf:// asks its server; the listing says what fails
        store.invalidate_cache(place)


def place_of(store: Any, address: str) -> str:
    """Path of an address within its store."""
    return str(store._strip_protocol(address))


def without_query(address: str) -> str:
    """Address without its signature, for messages."""
    return address.partition("?")[0] if is_web(address) else address


def with_suffix(address: str, suffix: str) -> str:
    """Address with a suffix added to its path, before the signature."""
    path = without_query(address)
    return path + suffix + address[len(path) :]


def _web_options() -> dict[str, Any]:
    """Options for web servers: no limit on the total time, as long as bytes arrive."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
    return {"client_kwargs": {"timeout": timeout}}


def _is_missing(error: BaseException) -> bool:
    """Whether an error means for certain that there is nothing at an address."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
    if getattr(cause, "status", None) in (404, 410):
        return True
    # fsspec says "not found" of a lost connection to a web server too, and names it as the cause
    is_lost = type(cause).__module__.startswith("aiohttp") or isinstance(cause, TimeoutError)
    return isinstance(error, FileNotFoundError) and not is_lost


def _is_refused(error: BaseException) -> bool:
    """Whether a server has refused for a permanent reason."""
    status = getattr(error.__cause__ or error, "status", None)
    stays = isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
    return stays or isinstance(error, PermissionError | NotADirectoryError)


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(cause) or type(cause).__name__
