"""Shards of buckets and web servers, through the cache; all servers are of this machine."""

import dataclasses
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import vatt.shards.stores
from datamodules.pretrain import PretrainData
from vatt import Tokenizer, preset
from vatt.cli import main
from vatt.data.order import GlobalOrder
from vatt.data.prefetch import ShardPrefetch
from vatt.errors import ShardError, UserError
from vatt.media.opening import RangeReader
from vatt.packing.check import check_shards
from vatt.shards.index_file import index_path
from vatt.shards.places import list_remote
from vatt.shards.shard_set import ShardSet
from vatt.shards.stores import checksum_of, open_store
from vatt.shards.writer import ShardWriter


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; counts what is asked for, breaks the first so many downloads of tars."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.asked = Counter()
        self.breaks = 0
        self.lists_folders = True
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked[path] += 1
        if path.endswith("/") and not self.server.lists_folders:
            self.send_error(403)
        elif path.endswith(".tar") and self.server.breaks > 0:
            self.server.breaks -= 1
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VATT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(vatt.shards.stores, "PAUSES_SECONDS", (0.0, 0.0, 0.0))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_shards(tmp_path / "served")


@pytest.fixture
def server(folder) -> Iterator[Server]:
    with serving(folder) as running:
        yield running


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    with Server(folder) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


def write_shards(folder: Path, num_shards: int = 3) -> Path:
    folder.mkdir()
    for number in range(num_shards):
        with ShardWriter(folder / f"{number:05d}.tar") as shard:
            for sample in range(number + 1):
                shard.add(f"{number}-{sample}", media_of(number, sample), "mp4", f"clip {sample}")
    return folder


def media_of(number: int, sample: int) -> bytes:
    return f"media {number} {sample}".encode() * 5000


def read_media(record) -> bytes:
    reader = RangeReader(record.media)
    content = reader.read(record.media.size)
    reader.close()
    return content


def kept(cache: Path) -> list[str]:
    return sorted(path.name[:5] for path in cache.glob("shards/*/*.tar"))


def remove_indexes(folder: Path) -> None:
    for path in folder.glob("*.index"):
        path.unlink()


def assert_same_as_local(shards: ShardSet, folder: Path) -> None:
    local = ShardSet(folder)
    assert shards.shard_sizes.tolist() == local.shard_sizes.tolist() == [1, 2, 3]
    for mine, theirs in zip(shards, local, strict=True):
        assert (mine.key, mine.segments, mine.metadata) == (
            theirs.key,
            theirs.segments,
            theirs.metadata,
        )
        assert read_media(mine) == read_media(theirs)


@pytest.mark.parametrize("with_indexes", [True, False])
@pytest.mark.parametrize("kind", ["file", "memory", "http", "list"])
def test_remote_shards_give_what_local_ones_give(folder, cache, request, kind, with_indexes):
    if not with_indexes:
        remove_indexes(folder)
    address = f"file://{folder}"
    if kind == "memory":
        address = f"memory://{folder.parent.name}/shards"
        store, place = open_store(address)
        store.put(f"{folder}/", place, recursive=True)
    elif kind in ("http", "list"):
        server = request.getfixturevalue("server")
        address = server.address
        if kind == "list":
            server.lists_folders = False
            (folder / "shards.txt").write_text("00002.tar\n00000.tar\n00001.tar\n")
    shards = ShardSet(address)
    assert kept(cache) == ([] if with_indexes else ["00000", "00001", "00002"])
    assert shards[0].shard == f"{address}/00000.tar"
    assert_same_as_local(shards, folder)
    assert address in repr(shards)
    assert not list(cache.glob("shards/*/.*.partial"))


def test_only_shards_that_are_read_are_downloaded_and_only_once(server, cache):
    shards = ShardSet(server.address)
    for _ in range(2):
        assert read_media(shards[1]) == media_of(1, 0)
    assert kept(cache) == ["00001"]
    assert ShardSet(server.address)[1].key == "1-0"
    assert server.asked["/00001.tar"] == server.asked["/00001.tar.index"] == 1


def test_an_address_can_name_its_shards(server, folder):
    server.lists_folders = False
    shards = ShardSet(server.address + "/{00001..00002}.tar?signature=secret")
    assert shards.shard_sizes.tolist() == [2, 3]
    assert shards[0].shard == f"{server.address}/00001.tar"
    assert shards[4].key == "2-2"


def test_folder_that_cannot_be_listed_is_told_what_to_do(server):
    server.lists_folders = False
    with pytest.raises(ShardError, match=r"cannot be listed.*shards\.txt.*\{00000\.\.00009\}\.tar"):
        ShardSet(server.address)


@pytest.mark.parametrize("name", ["../00000.tar", "/etc/00000.tar", "s3://other/00000.tar", "no"])
def test_list_of_shards_must_stay_in_its_folder(server, folder, name):
    (folder / "shards.txt").write_text(name)
    with pytest.raises(ShardError, match="must name tars in this folder"):
        ShardSet(server.address)


def test_broken_downloads_are_tried_again(server):
    shards = ShardSet(server.address)
    server.breaks = 3
    assert shards[0].key == "0-0"
    assert server.asked["/00000.tar"] == 4


def test_download_that_stays_broken_is_an_error_with_the_address(server, cache):
    shards = ShardSet(server.address)
    server.breaks = 4
    with pytest.raises(ShardError, match=rf"{server.address}/00000.tar could not be read in 4 att"):
        shards[0]
    assert not [path for path in cache.rglob("*") if "partial" in path.name]
    assert shards[0].key == "0-0"


def test_absent_things_are_not_asked_for_again(server, folder):
    shards = ShardSet(server.address)
    (folder / "00000.tar").unlink()
    with pytest.raises(ShardError, match="00000.tar could not be read: there is nothing there"):
        shards[0]
    assert server.asked["/00000.tar"] == 1


def test_server_that_does_not_answer_is_an_error():
    with pytest.raises(ShardError, match="could not be read in 4 attempts"):
        list_remote("http://127.0.0.1:9/00000.tar")  # the port where nobody listens


def test_changed_shard_is_refused_by_a_set_that_is_open(folder):
    shards = ShardSet(f"file://{folder}")
    shutil.copy(folder / "00001.tar", folder / "00000.tar")
    with pytest.raises(ShardError, match=r"00000.tar could not be read.* bytes came"):
        shards[0]
    assert ShardSet(f"file://{folder}").shard_sizes.tolist() == [2, 2, 3], "its index is stale"


def test_shard_that_changes_while_it_is_in_use_is_refused(folder, server):
    opened = [ShardSet(f"file://{folder}"), ShardSet(server.address)]
    os.utime(folder / "00000.tar", (0, 0))
    for shards in opened:
        with pytest.raises(ShardError, match="00000.tar has changed since it was listed"):
            shards[0]


def test_changed_shard_of_the_same_size_is_downloaded_anew(folder):
    assert ShardSet(f"file://{folder}")[0].key == "0-0"
    with ShardWriter(folder / "00000.tar") as shard:
        shard.add("x-0", media_of(0, 0), "mp4", "clip 0")
    assert ShardSet(f"file://{folder}")[0].key == "x-0"


def test_index_of_another_shard_is_refused(folder):
    with ShardWriter(folder / "other.tar") as other:
        other.add("x-0", media_of(0, 0), "mp4", "clip 0")
    index_path(folder / "other.tar").replace(index_path(folder / "00000.tar"))
    (folder / "other.tar").unlink()
    shards = ShardSet(f"file://{folder}")
    assert shards.key(0) == "x-0"
    with pytest.raises(ShardError, match=r"00000.tar.index is the index of another version"):
        shards[0]


def test_damaged_tar_is_named_by_its_address(folder):
    remove_indexes(folder)
    (folder / "00000.tar").write_bytes((folder / "00000.tar").read_bytes()[:3000])
    with pytest.raises(ShardError, match=rf"file://{folder}/00000.tar is truncated"):
        ShardSet(f"file://{folder}")


def test_cache_keeps_its_bound_and_what_was_used_last(folder, cache, monkeypatch):
    size = (folder / "00002.tar").stat().st_size
    shards = ShardSet(f"file://{folder}")
    monkeypatch.setenv("VATT_CACHE_GIB", str(1.9 * size / 2**30))
    shards[0], shards[1]  # 1/3 and 2/3 of the third
    shards[0]
    assert kept(cache) == ["00000", "00001"]
    shards[3]
    assert kept(cache) == ["00000", "00002"]
    monkeypatch.setenv("VATT_CACHE_GIB", str(1 / 2**30))
    assert read_media(shards[1]) == media_of(1, 0)
    assert kept(cache) == ["00001"], "the shard that is being read stays, whatever the bound"


def test_room_is_made_before_a_download(server, cache, folder, monkeypatch):
    shards = ShardSet(server.address)
    monkeypatch.setenv("VATT_CACHE_GIB", str((folder / "00002.tar").stat().st_size / 2**30))
    shards[0]
    server.breaks = 4
    with pytest.raises(ShardError, match="in 4 attempts"):
        shards[5]
    assert kept(cache) == []


def test_downloads_of_killed_processes_leave_the_cache(folder, cache, monkeypatch):
    shards = ShardSet(f"file://{folder}")
    monkeypatch.setenv("VATT_CACHE_GIB", str((folder / "00002.tar").stat().st_size / 2**30))
    left, running = (shards.folder / f".0000{n}-x.tar.partial" for n in (7, 8))
    left.write_bytes(b"left")
    running.write_bytes(b"running")
    os.utime(left, (0, 0))
    assert shards[5].key == "2-2"
    assert not left.exists()
    assert running.exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_cache_that_cannot_be_written_is_an_error(folder, tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VATT_CACHE", str(tmp_path / place))
    with pytest.raises(ShardError, match="cannot be written .*: set VATT_CACHE"):
        ShardSet(f"file://{folder}")


def test_reader_keeps_a_shard_that_leaves_the_cache(folder, cache):
    record = ShardSet(f"file://{folder}")[1]
    reader = RangeReader(record.media)
    first = reader.read(10)
    for path in cache.glob("shards/*/*.tar"):
        path.unlink()
    assert first + reader.read(record.media.size) == media_of(1, 0)
    reader.close()
    assert read_media(record) == media_of(1, 0), "a later reader downloads it again"


def test_indexes_stay_when_shards_leave(folder, cache, caplog):
    remove_indexes(folder)
    assert len(ShardSet(f"file://{folder}")) == 6
    assert "3 of 3 shards" in caplog.text
    assert "have no index" in caplog.text
    for path in cache.glob("shards/*/*.tar"):
        path.unlink()
    assert len(ShardSet(f"file://{folder}")) == 6
    assert kept(cache) == []


def test_download_makes_the_index(folder):
    remove_indexes(folder)
    shard = list_remote(f"file://{folder}")[0]
    os.close(shard.open())
    assert len(shard.stored_index()) == 1


class Bucket(MemoryFileSystem):
    """A store that says why something is not there, as those of S3 and of the Hub do."""

    protocol = "bucket"

    def cat_file(self, path, **options):
        try:
            return super().cat_file(path, **options)
        except FileNotFoundError as error:
            raise FileNotFoundError(path) from KeyError(str(error))


def test_missing_index_in_a_bucket_is_none(folder):
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    store, place = open_store(f"bucket://{folder.parent.name}")
    remove_indexes(folder)
    store.put(f"{folder}/", place, recursive=True)
    shards = ShardSet(f"bucket://{folder.parent.name}/{{00000..00002}}.tar")
    assert_same_as_local(shards, folder)


READER = """
import sys
from vatt.shards.shard_set import ShardSet
shards = ShardSet(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(shards[5].key, flush=True)
"""


def test_processes_that_want_a_shard_at_once_download_it_once(server):
    command = [sys.executable, "-c", READER, server.address]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    readers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [reader.stdout.readline() for reader in readers] == ["ready\n"] * 2
    assert server.asked["/00002.tar"] == 0
    for reader in readers:
        reader.stdin.write("\n")
        reader.stdin.flush()
    assert [reader.communicate()[0] for reader in readers] == ["2-2\n"] * 2
    assert server.asked["/00002.tar"] == 1


def test_threads_that_want_a_shard_at_once_download_it_once(server):
    shards = ShardSet(server.address)
    keys = []
    threads = [threading.Thread(target=lambda: keys.append(shards[5].key)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keys == ["2-2"] * 4
    assert server.asked["/00002.tar"] == 1


def test_forked_process_downloads_for_itself(server):
    shards = ShardSet(server.address)
    code = os.fork()
    if code == 0:
        os._exit(0 if shards[5].key == "2-2" else 1)
    assert os.waitpid(code, 0)[1] == 0
    assert server.asked["/00002.tar"] == 1


def test_content_must_have_the_checksum_of_its_store(folder):
    content = (folder / "00000.tar").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert checksum_of({"lfs": {"sha256": digest}}) == ("sha256", digest)
    assert checksum_of({"md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg=="}) == (
        "md5",
        hashlib.md5(b"").hexdigest(),
    )
    assert checksum_of({"ETag": '"d41d8cd98f00b204e9800998ecf8427e"'}) is None
    shard = list_remote(f"file://{folder}")[0]
    os.close(dataclasses.replace(shard, checksum=("sha256", digest)).open())
    shard.path.unlink()
    with pytest.raises(ShardError, match="its sha256 is .* must be 00"):
        dataclasses.replace(shard, checksum=("sha256", "00")).open()


@pytest.mark.parametrize(
    ("address", "package", "remedy"),
    [
        ("https://host/shards", "aiohttp", r'pip install "vatt\[remote\]"'),
        ("s3://bucket/shards", "s3fs", r'pip install "vatt\[s3\]"'),
        ("gs://bucket/shards", "gcsfs", r'pip install "vatt\[gcs\]"'),
        ("az://container/shards", "adlfs", r"install it"),
    ],
)
def test_missing_back_end_is_one_sentence_with_the_remedy(monkeypatch, address, package, remedy):
    monkeypatch.setitem(sys.modules, package, None)
    kind = address.partition("://")[0]
    with pytest.raises(UserError, match=rf"^{kind}:// .*{package}.*: {remedy}$"):
        ShardSet(address)
    with pytest.raises(ShardError, match="nonsense"):
        ShardSet("nonsense://bucket/shards")


@pytest.mark.parametrize("value", ["much", "0", "-1", "nan"])
def test_bound_must_be_a_number_above_0(folder, monkeypatch, value):
    monkeypatch.setenv("VATT_CACHE_GIB", value)
    with pytest.raises(UserError, match="VATT_CACHE_GIB must be a number above 0"):
        ShardSet(f"file://{folder}")


def test_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ShardError, match="holds no shards"):
        ShardSet(f"file://{tmp_path}")
    with pytest.raises(ShardError, match="there is nothing there"):
        ShardSet(f"file://{tmp_path}/absent")


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_check_reads_remote_shards(tiny_shards, num_workers):
    local = check_shards(tiny_shards / "train", show_progress=False)
    remote = check_shards(
        f"file://{tiny_shards}/train", num_workers=num_workers, show_progress=False
    )
    assert remote.rows == local.rows


def test_command_checks_an_address(server, capsys):
    assert main(["shards", "check", server.address, "--workers", "0"]) == 1  # they are no media
    assert f"{server.address}: 6 samples in 3 shards" in capsys.readouterr().out


def shards_asked_for(server: Server, number: int) -> set[str]:
    """Tars that were asked for, once there are so many, or after a while."""
    for _ in range(500):
        asked = {path for path in server.asked if path.endswith(".tar")}
        if len(asked) >= number:
            break
        time.sleep(0.02)
    time.sleep(0.1)  # for those that should not come
    return {path for path in server.asked if path.endswith(".tar")}


@pytest.fixture
def many(tmp_path) -> Iterator[tuple[ShardSet, Server]]:
    """Twelve shards on a web server."""
    with serving(write_shards(tmp_path / "many", 12)) as running:
        yield ShardSet(running.address), running


def test_shards_of_this_window_and_the_next_are_downloaded_ahead(many, cache):
    shards, server = many
    order = GlobalOrder([shards.shard_sizes], shuffle_shards=3)
    prefetch = ShardPrefetch([shards], order)
    prefetch.reach(0)
    expected = {f"/{shards.shards[one].name}" for part in order.shards_ahead(0) for _, one in part}
    assert shards_asked_for(server, 6) == expected
    last = next(p for p in range(100) if order.shards_ahead(p) != order.shards_ahead(0)) - 1
    prefetch.reach(last)
    assert len(shards_asked_for(server, 6)) == 6
    prefetch.reach(last + 1)
    assert len(shards_asked_for(server, 9)) == 9
    for _ in range(500):
        if len(kept(cache)) == 9:
            break
        time.sleep(0.02)
    assert len(kept(cache)) == 9
    assert {server.asked[path] for path in shards_asked_for(server, 9)} == {1}


def test_as_much_is_downloaded_ahead_as_the_cache_has_room_for(many, monkeypatch, caplog):
    shards, server = many
    order = GlobalOrder([shards.shard_sizes], shuffle_shards=3)
    now, after = ([shards.shards[one] for _, one in part] for part in order.shards_ahead(0))
    room = sum(one.size for one in now) + sum(one.size for one in after[:2]) + 1
    monkeypatch.setenv("VATT_CACHE_GIB", str(room / 2**30))
    ShardPrefetch([shards], order).reach(0)
    assert shards_asked_for(server, 5) == {f"/{one.name}" for one in [*now, *after[:2]]}
    assert caplog.text == ""


def test_a_cache_that_cannot_hold_what_is_mixed_at_a_time_is_reported_once(
    many, monkeypatch, caplog
):
    shards, server = many
    order = GlobalOrder([shards.shard_sizes], shuffle_shards=3)
    now = [shards.shards[one] for _, one in order.shards_ahead(0)[0]]
    monkeypatch.setenv("VATT_CACHE_GIB", str(sum(one.size for one in now[:2]) / 2**30))
    prefetch = ShardPrefetch([shards], order)
    prefetch.reach(0)
    prefetch.reach(1)
    assert shards_asked_for(server, 3) == {f"/{one.name}" for one in now}
    assert caplog.text.count("training mixes 3 shards at a time") == 1
    assert "VATT_CACHE_GIB to at least 1" in caplog.text


def test_a_download_ahead_that_fails_is_left_to_the_reader(many):
    shards, server = many
    server.breaks = 10**6
    prefetch = ShardPrefetch([shards], GlobalOrder([shards.shard_sizes], shuffle_shards=1))
    prefetch.reach(0)
    asked = shards_asked_for(server, 2)
    assert len(asked) == 2
    server.breaks = 0
    assert [record.key for record in shards] == [record.key for record in ShardSet(server.address)]


def test_training_from_an_address_downloads_ahead(tiny_shards, tmp_path):
    config = preset("tiny")
    Tokenizer.train(["a red ring"], 50).save(tmp_path / "tokenizer.json")
    with serving(tiny_shards / "train") as server:
        data = PretrainData(
            [server.address],
            video=config.video,
            audio=config.audio,
            text=config.text,
            batch_size=1,
            num_workers=0,
            tokenizer=str(tmp_path / "tokenizer.json"),
        )
        data.setup("fit")
        assert not shards_asked_for(server, 0)
        next(iter(data.train_dataloader()))
        assert len(shards_asked_for(server, 3)) == 3  # the clip itself needs one
