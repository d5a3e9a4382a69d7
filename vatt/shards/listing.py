"""Lists of remote shards."""

import hashlib
import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from vatt.errors import ShardError
from vatt.media.source import is_web
from vatt.shards.cache import cache_folder
from vatt.shards.index_file import INDEX_SUFFIX
from vatt.shards.remote import RemoteShard, in_threads
from vatt.shards.stores import (
    checksum_of,
    faults,
    forget_listing,
    open_store,
    persist,
    place_of,
    read_if_there,
    version_of,
    with_suffix,
    without_query,
)
from vatt.shards.tar import leads_outside

LIST_NAME = "shards.txt"  # names of a web folder's tars, one a line


def list_remote(address: str) -> list[RemoteShard]:
    """Tars at an address, sorted by name.

    Args:
        address: Address of a folder, or of tars, such as `https://host/shards/{00000..00009}.tar`.
            In a folder on a web server, `shards.txt` or the links of the page name the tars.

    Raises:
        ShardError: there are no tars, or the address cannot be listed or reached.
        UserError: the package for such addresses is missing.
    """
    address = address.rstrip("/")
    store, folder = open_store(address)
    details: dict[str, dict[str, Any]] = {}
    if without_query(address).endswith(".tar"):
        addresses = _expand(address)
    elif is_web(address):
        addresses = _list_web(store, address)
    else:
        forget_listing(store, folder)
        listed = persist(address, lambda: store.ls(folder, detail=True))
        details = {PurePosixPath(one["name"]).name: one for one in listed}
        addresses = [f"{address}/{name}" for name in details if name.endswith(".tar")]
        addresses = [one for one in addresses if not one.rpartition("/")[2].startswith(".")]
    if not addresses:
        raise ShardError(f"{without_query(address)} holds no shards (*.tar): upload some there")

    def describe(one: str) -> RemoteShard:
        name = PurePosixPath(without_query(one)).name
        detail = details.get(name)
        if detail is None:
            detail = persist(one, lambda: store.info(place_of(store, one)))
        return _described(one, detail, f"{name}{INDEX_SUFFIX}" in details if details else None)

    return in_threads(describe, sorted(addresses))


def _list_web(store: Any, address: str) -> list[str]:
    """Tars of a folder on a web server, by its list or by the links on its page."""
    content = read_if_there(store, with_suffix(address, f"/{LIST_NAME}"))
    if content is not None:
        names = [line for line in content.decode("utf-8", "replace").split() if line]
        for name in names:
            if leads_outside(name) or "://" in name or not name.endswith(".tar"):
                raise ShardError(
                    f"{without_query(address)}/{LIST_NAME} names {name!r}: it must name tars "
                    "in this folder, one a line"
                )
    else:
        try:
            links = store.ls(f"{address}/", detail=False)
        except faults():
            links = []
        names = [PurePosixPath(urlsplit(link).path).name for link in links]
        names = sorted({name for name in names if name.endswith(".tar")})
    if not names:
        raise ShardError(
            f"{without_query(address)} cannot be listed: web servers do not say what is in a "
            f"folder. Put a {LIST_NAME} there that names the tars, one a line, or name them: "
            "'https://host/shards/{00000..00009}.tar'"
        )
    return [with_suffix(address, f"/{name}") for name in names]


def _described(address: str, detail: dict[str, Any], has_index: bool | None) -> RemoteShard:
    """A shard as a store describes it."""
    size = detail.get("size")
    version = version_of(detail)
    folder, _, name = without_query(address).rpartition("/")
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", folder.partition("://")[2])[-60:]
    path = (
        cache_folder().absolute()
        / "shards"
        / f"{readable}-{_digest(folder)}"
        / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name[:-4])}-{_digest(f'{name} {size} {version}')}.tar"
    )
    known = None if size is None else int(size)
    return RemoteShard(address, path, known, checksum_of(detail), has_index, version)


def _expand(address: str) -> list[str]:
    """`{00000..00009}` in an address → its ten addresses."""
    ends = re.search(r"\{(\d+)\.\.(\d+)\}", address)
    if ends is None:
        return [address]
    first, last = ends.groups()
    before, after = address[: ends.start()], address[ends.end() :]
    return [
        f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last) + 1)
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
