import bz2
import gzip
import io
import json
import lzma
import math
import os
import pickle
import subprocess
import sys
import tarfile
import textwrap
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from safetensors import safe_open
from safetensors.numpy import save

from vatt.errors import MediaError, ShardError
from vatt.media.clip import read_frames
from vatt.media.write_mp4 import write_mp4
from vatt.shards.index import scan_shard
from vatt.shards.index_file import index_path, read_index
from vatt.shards.record import Segment
from vatt.shards.shard_set import ShardSet
from vatt.shards.writer import ShardWriter

CAPTION = Segment(0.5, 2.0, "a red square falls")


def write_shard(path: Path, num_samples: int = 3) -> Path:
    with ShardWriter(path) as shard:
        for index in range(num_samples):
            shard.add(f"{path.stem}-{index}", media_of(path, index), "mp4", segments=[CAPTION])
    return path


def media_of(path: Path, index: int) -> bytes:
    return f"media {path.stem} {index}".encode() * (index + 1)


def write_tar(path: Path, members: dict[str, bytes], **kinds: bytes) -> Path:
    """A tar as others write it; `kinds` gives a member another type than plain file."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    return path


def content_of(record) -> bytes:
    with Path(record.media.path).open("rb") as file:
        return os.pread(file.fileno(), record.media.size, record.media.offset)


def test_records_come_back_as_they_were_written_in_the_order_of_shards(tmp_path):
    for name in ("00001", "00000"):
        write_shard(tmp_path / f"{name}.tar")
    shards = ShardSet(tmp_path)
    assert len(shards) == 6
    assert shards.shard_sizes.tolist() == [3, 3]
    assert shards.shard_sizes.dtype == np.int64
    assert [path.name for path in shards.paths] == ["00000.tar", "00001.tar"]
    assert [record.key for record in shards] == [f"0000{s}-{i}" for s in (0, 1) for i in range(3)]
    assert [shards.key(i) for i in range(6)] == [record.key for record in shards]
    for index, record in enumerate(shards):
        assert record.shard == str(shards.paths[index // 3])
        assert content_of(record) == media_of(shards.paths[index // 3], index % 3)
        assert record.segments == (CAPTION,)
        assert record.metadata == {"key": record.key}
    assert shards[-1] == shards[5]
    with pytest.raises(IndexError, match="sample 6 of .* which has 6"):
        shards[6]


def test_clip_decodes_straight_from_the_shard(tmp_path):
    frames = np.zeros((10, 32, 48, 3), dtype=np.uint8)
    frames[:, :, 24:] = 200
    write_mp4(tmp_path / "a.mp4", frames, 10.0)
    with ShardWriter(tmp_path / "00000.tar") as shard:
        shard.add("first", b"x" * 777, "mp4")
        shard.add("clip", tmp_path / "a.mp4", "mp4")
    window = ShardSet(tmp_path)[1].media
    asked = {"start_seconds": 0.2, "num_frames": 4, "frame_rate": 10.0, "short_side": 32}
    from_shard, coverage = read_frames(window, **asked)
    from_file, _ = read_frames(tmp_path / "a.mp4", **asked)
    assert coverage == 1
    assert (from_shard == from_file).all()


def test_shards_of_video2dataset_are_read_as_they_are(tmp_path):
    metadata = {"key": "000000001", "url": "https://example.org/a", "status": "success"}
    members = {
        "000000000.mp4": b"no text",
        "000000000.json": b"{}",
        "000000000.txt": b"",
        "000000001.m4a": b"sound",
        "000000001.MP4": b"picture and sound",
        "000000001.txt": "ein Hund läuft".encode(),
        "000000001.json": json.dumps(metadata).encode(),
        "000000002.txt": b"only text",
        "._000000003.mp4": b"left by a Mac",
        "notes/README": b"no sample",
    }
    write_tar(tmp_path / "00000.tar", members)
    (tmp_path / "00000.parquet").write_bytes(b"not ours")
    silent, spoken, text_only = ShardSet(tmp_path)
    assert silent.segments == ()
    assert content_of(silent) == b"no text"
    assert spoken.segments == (Segment(0.0, math.inf, "ein Hund läuft"),)
    assert spoken.metadata == metadata
    assert content_of(spoken) == b"picture and sound"
    assert text_only.media is None
    assert text_only.segments[0].text == "only text"


@pytest.mark.parametrize("extensions", [("jpg", "m4a", "mp4"), ("mp4", "m4a", "jpg")])
def test_video_comes_before_sound_and_pictures_of_a_sample(tmp_path, extensions):
    write_tar(tmp_path / "00000.tar", {f"a.{name}": name.encode() for name in extensions})
    assert content_of(ShardSet(tmp_path)[0]) == b"mp4"


def test_other_tar_readers_find_the_layout_of_video2dataset(tmp_path):
    with ShardWriter(tmp_path / "00000.tar") as shard:
        whole = Segment(0.0, math.inf, "whole")
        shard.add("a", b"1", "MP4", "said", {"license": "CC0"}, segments=[CAPTION, whole])
    with tarfile.open(tmp_path / "00000.tar") as tar:
        assert tar.getnames() == ["a.mp4", "a.txt", "a.json"]
        assert tar.extractfile("a.txt").read() == b"said"
        stored = json.loads(tar.extractfile("a.json").read())
    timed = {"start_seconds": 0.5, "end_seconds": 2.0, "text": "a red square falls"}
    untimed = {"start_seconds": 0.0, "end_seconds": None, "text": "whole"}
    assert stored == {"license": "CC0", "key": "a", "segments": [timed, untimed]}
    assert ShardSet(tmp_path)[0].segments == (CAPTION, whole)


def test_blank_captions_are_no_captions(tmp_path):
    with ShardWriter(tmp_path / "00000.tar") as shard:
        shard.add("timed", b"1", "mp4", segments=[Segment(0.0, 1.0, " \n"), CAPTION])
        shard.add("plain", b"2", "mp4", " ")
        shard.add("none", b"3", "mp4", "text that the segments replace", segments=[])
    assert [record.segments for record in ShardSet(tmp_path)] == [(CAPTION,), (), ()]
    assert list(ShardSet(tmp_path).captions()) == [CAPTION.text]


def test_same_samples_give_the_same_bytes(tmp_path):
    first = write_shard(tmp_path / "00000.tar").read_bytes()
    assert write_shard(tmp_path / "00000.tar").read_bytes() == first


def test_index_is_written_with_the_shard_and_says_what_a_scan_says(tmp_path):
    shard = write_shard(tmp_path / "00000.tar")
    assert index_path(shard).exists()
    assert read_index(shard).same_as(scan_shard(shard))
    index_path(shard).unlink()
    assert len(ShardSet(tmp_path)) == 3
    assert index_path(shard).exists()


def test_long_and_foreign_names_keep_their_place_in_the_index(tmp_path):
    keys = ["clips/" + "n" * 150, "日本語", "plain"]
    with ShardWriter(tmp_path / "00000.tar") as shard:
        for key in keys:
            shard.add(key, key.encode(), "mp4")
    assert read_index(tmp_path / "00000.tar").same_as(scan_shard(tmp_path / "00000.tar"))
    assert [content_of(record).decode() for record in ShardSet(tmp_path)] == keys


def test_stale_index_is_refused_by_name(tmp_path):
    shard = write_shard(tmp_path / "00000.tar")
    old_index = index_path(shard).read_bytes()
    write_shard(shard, num_samples=2)
    index_path(shard).write_bytes(old_index)
    with pytest.raises(ShardError, match=r"00000.tar.index is stale: .*delete the index"):
        ShardSet(tmp_path)
    index_path(shard).unlink()
    assert len(ShardSet(tmp_path)) == 2


def test_copied_shard_keeps_its_index(tmp_path):
    shard = write_shard(tmp_path / "00000.tar")
    os.utime(shard, ns=(0, 0))
    before = index_path(shard).stat().st_mtime_ns
    assert len(ShardSet(tmp_path)) == 3
    assert index_path(shard).stat().st_mtime_ns != before  # renewed: the next opening needs no scan


def test_damaged_index_is_made_again(tmp_path):
    shard = write_shard(tmp_path / "00000.tar")
    good = index_path(shard).read_bytes()
    index_path(shard).write_bytes(good[:20])
    assert len(ShardSet(tmp_path)) == 3
    assert len(index_path(shard).read_bytes()) == len(good)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("members", lambda members: members + 10**9),
        ("members", lambda members: np.where(members > 0, 2**62, members)),
        ("members", lambda members: members[:2]),
        ("members", lambda members: members.astype(np.float64)),
        ("key_ends", lambda ends: ends[::-1]),
        ("key_ends", lambda ends: ends + 10**9),
        ("keys", lambda keys: keys[:0]),
    ],
)
def test_an_index_that_cannot_be_that_of_its_tar_is_made_again(tmp_path, name, change):
    shard = write_shard(tmp_path / "00000.tar")
    with safe_open(index_path(shard), framework="np") as stored:
        arrays = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        metadata = stored.metadata()
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    index_path(shard).write_bytes(save(arrays, metadata))
    assert [content_of(one) for one in ShardSet(tmp_path)] == [media_of(shard, n) for n in range(3)]


def test_pickled_set_is_small_and_holds_no_open_file(tmp_path):
    write_shard(tmp_path / "00000.tar", num_samples=500)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    shards = ShardSet(tmp_path)
    sample = shards[17]
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files
    sent = pickle.dumps(shards)
    assert len(sent) < 80 * 500
    assert pickle.loads(sent)[17] == sample


@pytest.mark.parametrize("num_samples", [3, 1_000])
def test_what_a_worker_is_sent_does_not_grow_with_the_samples(tmp_path, num_samples):
    write_shard(tmp_path / "00000.tar", num_samples)
    try:
        assert len(ForkingPickler.dumps(ShardSet(tmp_path))) < 1_500
    finally:
        resource_sharer.stop()  # the thread that would hand out the memory's descriptors


def look_up_and_mark(shards, answers):
    """In a worker: a sample, and a mark in the index, which the sender sees where it is shared."""
    answers.put(shards[17])
    shards._index.members[3] = 7


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_workers_share_the_index(tmp_path, start_method):
    write_shard(tmp_path / "00000.tar", num_samples=20)
    shards = ShardSet(tmp_path)
    context = torch.multiprocessing.get_context(start_method)
    answers = context.SimpleQueue()
    worker = context.Process(target=look_up_and_mark, args=(shards, answers))
    worker.start()
    assert answers.get() == shards[17]
    worker.join()
    assert worker.exitcode == 0
    assert (shards._index.members[3] == 7).all()


def test_missing_folder_is_named_with_the_remedy(tmp_path):
    with pytest.raises(ShardError, match=r"no shard folder .*gone.*vatt shards build"):
        ShardSet(tmp_path / "gone")


def test_folder_without_shards_is_named_with_the_remedy(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"media")
    with pytest.raises(ShardError, match=r"holds no shards .*vatt shards build"):
        ShardSet(tmp_path)
    with pytest.raises(ShardError, match="is a file"):
        ShardSet(tmp_path / "a.mp4")


def test_shard_without_samples_is_refused_by_name(tmp_path):
    write_tar(tmp_path / "00007.tar", {"README": b"nothing"})
    with pytest.raises(ShardError, match=r"00007.tar holds no samples"):
        ShardSet(tmp_path)
    write_tar(tmp_path / "00007.tar", {"a.b.mp4": b"film", "a.b.txt": b"text", "._a.mp4": b""})
    with pytest.raises(ShardError, match=r"a key ends at the first dot, and 'a.b.mp4' has another"):
        ShardSet(tmp_path)
    (tmp_path / "00007.tar").write_bytes(b"")
    with pytest.raises(ShardError, match=r"00007.tar is empty \(0 bytes\)"):
        ShardSet(tmp_path)


@pytest.mark.parametrize("kept_bytes", [100, 512, 600, 1536, 3000])
def test_truncated_shard_is_refused_wherever_it_ends(tmp_path, kept_bytes):
    whole = write_shard(tmp_path / "whole.tar").read_bytes()
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "00000.tar").write_bytes(whole[:kept_bytes])
    with pytest.raises(ShardError, match=r"00000.tar is truncated.*(copy|build)"):
        ShardSet(shards)


def test_damage_between_two_members_is_refused(tmp_path):
    shard = write_shard(tmp_path / "00000.tar")
    content = bytearray(shard.read_bytes())
    content[1024:1536] = b"\xff" * 512  # the header of the second member
    shard.write_bytes(content)
    with pytest.raises(ShardError, match="00000.tar is damaged at byte 1024"):
        scan_shard(shard)


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"\x1f\x8b" + b"z" * 2000])
def test_file_that_is_no_tar_is_refused(tmp_path, content):
    (tmp_path / "00000.tar").write_bytes(content)
    with pytest.raises(ShardError, match=r"00000.tar is truncated or not a tar"):
        ShardSet(tmp_path)


@pytest.mark.parametrize(
    "name", ["/etc/a.mp4", "../a.mp4", "b/../../a.mp4", "C:\\a.mp4", "..\\a.mp4"]
)
def test_member_that_leads_out_of_the_archive_is_refused_by_name(tmp_path, name):
    write_tar(tmp_path / "00000.tar", {"good.mp4": b"1", name: b"2"})
    with pytest.raises(ShardError, match="00000.tar is refused: its member .*a.mp4' leads out"):
        ShardSet(tmp_path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "is a link to '/etc/passwd'"),
        (tarfile.LNKTYPE, "is a link to '/etc/passwd'"),
        (tarfile.FIFOTYPE, "is neither a plain file nor a folder"),
        (tarfile.CHRTYPE, "is neither a plain file nor a folder"),
    ],
)
def test_links_and_devices_are_refused_by_name(tmp_path, kind, reason):
    write_tar(tmp_path / "00000.tar", {"good.mp4": b"1"}, bad=kind)
    with pytest.raises(ShardError, match=f"its member 'bad' {reason}"):
        ShardSet(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_would_fill_the_memory_is_refused_by_name(tmp_path, kind):
    info = tarfile.TarInfo("bomb")
    info.type, info.size = kind, 1 << 36  # 64 GB, which the file has: a hole that takes no room
    with (tmp_path / "00000.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 37)
    with pytest.raises(ShardError, match="00000.tar is refused: a header claims .*68,719,476,736"):
        ShardSet(tmp_path)


def test_texts_that_would_fill_the_memory_spoil_their_own_sample_only(tmp_path):
    with (tmp_path / "00000.tar").open("wb") as file:
        for name, size in (("bomb.json", 1 << 36), ("good.txt", 4)):
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.seek(-(-size // 512) * 512, os.SEEK_CUR)
        file.write(bytes(1024))
    shards = ShardSet(tmp_path)
    with pytest.raises(MediaError, match="bomb: claims 68,719,476,736 bytes of json or txt"):
        shards[0]
    assert shards[1].key == "good"


def test_a_compressed_archive_is_refused_without_being_unpacked(tmp_path):
    for number, pack in enumerate((gzip.compress, bz2.compress, lzma.compress)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "00000.tar").write_bytes(pack(bytes(1 << 20)))
        with pytest.raises(ShardError, match="00000.tar is truncated or not a tar"):
            ShardSet(folder)


def test_key_that_comes_twice_is_refused(tmp_path):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name in ("a.mp4", "b.mp4", "a.mp4"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(ShardError, match=r"holds 'a.mp4' twice"):
        ShardSet(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("bad.json", b'{"segments": [', "bad.json: not JSON"),
        ("bad.json", b"[1]", "bad.json: must be an object"),
        ("bad.json", b'{"segments": "a"}', "bad.json: segments must be a list"),
        ("bad.json", b'{"segments": [{"text": 3}]}', "bad.json: a segment must have"),
        ("bad.json", b'{"segments": [{"text": "a", "start_seconds": "x"}]}', "must be seconds"),
        (
            "bad.json",
            b'{"segments": [{"text": "a", "start_seconds": 3, "end_seconds": 1}]}',
            "must not end before it starts",
        ),
        ("bad.txt", b"\xff\xfe", "bad.txt: not UTF-8"),
    ],
)
def test_damaged_texts_spoil_their_own_sample_only(tmp_path, name, content, reason):
    write_tar(tmp_path / "00000.tar", {"bad.mp4": b"1", name: content, "good.txt": b"fine"})
    shards = ShardSet(tmp_path)
    with pytest.raises(MediaError, match=reason):
        shards[0]
    assert shards[1].segments[0].text == "fine"
    assert list(shards.captions()) == ["fine"]


def test_shard_that_shrinks_while_in_use_is_noticed(tmp_path):
    shard = write_shard(tmp_path / "00000.tar")
    shards = ShardSet(tmp_path)
    os.truncate(shard, 1000)
    with pytest.raises(ShardError, match=r"00000.tar has become shorter"):
        shards[2]
    shard.unlink()
    with pytest.raises(ShardError, match=r"00000.tar cannot be read any more"):
        shards[2]


@pytest.mark.parametrize("key", ["", "a.b", "/a", "../a", "taken"])
def test_keys_that_other_readers_would_misread_are_refused(tmp_path, key):
    with ShardWriter(tmp_path / "00000.tar") as shard:
        shard.add("taken", b"1", "mp4")
        with pytest.raises(ValueError, match="cannot be a key"):
            shard.add(key, b"2", "mp4")
        with pytest.raises(ValueError, match="no media extension"):
            shard.add("other", b"2", "exe")
    assert len(ShardSet(tmp_path)) == 1


def test_sample_that_cannot_be_read_leaves_nothing_in_the_shard(tmp_path):
    with ShardWriter(tmp_path / "00000.tar") as shard:
        shard.add("a", b"1" * 3000, "mp4")
        with pytest.raises(TypeError):
            shard.add("b", b"2" * 3000, "mp4", metadata={"no": object()})
        with pytest.raises(FileNotFoundError):
            shard.add("c", tmp_path / "gone.mp4", "mp4")
        shard.add("d", b"4", "mp4")
    assert [content_of(record) for record in ShardSet(tmp_path)] == [b"1" * 3000, b"4"]
    assert read_index(tmp_path / "00000.tar").same_as(scan_shard(tmp_path / "00000.tar"))


def test_interrupted_writer_leaves_no_file_and_keeps_the_old_shard(tmp_path):
    old = write_shard(tmp_path / "00000.tar").read_bytes()
    before = sorted(tmp_path.iterdir())

    def write_interrupted():
        with ShardWriter(tmp_path / "00000.tar") as shard:
            shard.add("a", b"1", "mp4")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_interrupted()
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "00000.tar").read_bytes() == old
    assert len(ShardSet(tmp_path)) == 3


def test_writer_without_samples_refuses_and_leaves_no_file(tmp_path):
    with (
        pytest.raises(ShardError, match=r"nothing was added to .*00000.tar"),
        ShardWriter(tmp_path / "00000.tar"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_full_disk_gives_one_sentence_and_no_half_written_file(tmp_path):
    # A limit on file sizes stands for a full disk: writing fails in the middle in the same way.
    program = textwrap.dedent("""
        import resource, sys
        from vatt.errors import ShardError
        from vatt.shards.writer import ShardWriter
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            with ShardWriter(sys.argv[1]) as shard:
                for index in range(100):
                    shard.add(str(index), b"m" * 50_000, "mp4")
        except ShardError as error:
            print(error)
    """)
    shard = tmp_path / "00000.tar"
    done = subprocess.run(
        [sys.executable, "-c", program, str(shard)], capture_output=True, text=True
    )
    assert done.stdout.startswith(f"no space left to write {shard}"), done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_importing_shards_loads_neither_torch_nor_av():
    program = "import sys, vatt.shards.shard_set; print({'torch', 'av'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
