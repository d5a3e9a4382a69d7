import os
import random
import re
import shutil
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from vatt.errors import CheckpointError, UserError
from vatt.official.tensor_bundle import TensorBundle, find_checkpoint

FOLDER = Path(__file__).parents[1] / "packs" / "ft_wat"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
MAGIC = bytes.fromhex("57fb808b247547db")
FLOAT, INT32, STRING, INT64, BOOL, BFLOAT16, HALF = 1, 3, 7, 9, 10, 14, 19


# A small writer of bundles, which also writes what no TensorFlow would.
def varint(number: int) -> bytes:
    number %= 2**64
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32).to_bytes(4, "little")


def entry(dtype, axes, data=b"", offset=0, size=None, shard=0, shape=None, more=b""):
    size = len(data) if size is None else size
    dims = b"".join(field(2, field(1, axis)) for axis in axes)
    head = field(1, dtype) + field(2, dims if shape is None else shape)
    place = field(3, shard) + field(4, offset) + field(5, size)
    return head + place + varint(6 << 3 | 5) + masked_crc(data) + more


def header(num_shards=1, more=b""):
    return field(1, num_shards) + field(3, field(1, 1)) + more


def block(content: bytes, compression: int = 0) -> bytes:
    body = content + bytes([compression])
    return body + masked_crc(body)


def records(items) -> bytes:
    return b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in items)


RESTARTS = (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


def table(items, compression=0, in_block=2) -> bytes:
    """The bytes of an index, with `in_block` keys in each block."""
    out, places = b"", []
    for start in range(0, len(items), in_block):
        group = items[start : start + in_block]
        content = records(group) + RESTARTS
        places.append((group[-1][0], varint(len(out)) + varint(len(content))))
        out += block(content, compression)
    return out + index_and_footer(places, len(out))


def index_and_footer(places, offset: int) -> bytes:
    content = records(places) + RESTARTS
    footer = varint(0) + varint(0) + varint(offset) + varint(len(content))
    return block(content) + footer.ljust(40, b"\0") + MAGIC


def table_of_block(content: bytes) -> bytes:
    """An index with one block, of this content."""
    place = [(b"z", varint(0) + varint(len(content)))]
    return block(content) + index_and_footer(place, len(content) + 5)


def write(folder: Path, index: bytes | list, data: bytes = b"") -> Path:
    """A checkpoint `odd` of this index, given as bytes or as items after the header."""
    if isinstance(index, list):
        index = table([(b"", header()), *index])
    (folder / "odd.index").write_bytes(index)
    (folder / "odd.data-00000-of-00001").write_bytes(data)
    return folder / "odd"


ONE = np.arange(6, dtype="<f4").tobytes()
GOOD = (b"w", entry(FLOAT, (2, 3), ONE))
SLICED = entry(FLOAT, (6,), more=field(7, b""))


@pytest.fixture
def copied(tmp_path) -> Path:
    return shutil.copytree(FOLDER / "ckpt", tmp_path / "ckpt")


def read_expected() -> dict[str, np.ndarray]:
    """Full name → value, as TensorFlow gave them."""
    with np.load(FOLDER / "vars.npz") as arrays:
        return {name + SUFFIX: arrays[name] for name in arrays.files}


def refuse(prefix: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        TensorBundle.open(prefix)
    message = str(caught.value)
    assert message.startswith(str(prefix.parent)), message
    for word in words:
        assert word in message


def test_a_checkpoint_of_tensorflow_is_read_bit_for_bit():
    bundle, expected = TensorBundle.open(FOLDER / "ckpt"), read_expected()
    assert bundle.shapes.keys() == expected.keys()
    for name, wanted in expected.items():
        actual = bundle.read(name)
        assert actual.tobytes() == wanted.tobytes(), name
        assert actual.shape == wanted.shape == bundle.shapes[name]
        assert actual.dtype == wanted.dtype
        assert actual.flags.writeable
    assert bundle.unread == {GRAPH: "string"}


def test_what_cannot_be_read_is_refused_by_name():
    bundle = TensorBundle.open(FOLDER / "ckpt")
    with pytest.raises(CheckpointError, match="GRAPH' is of type string, which is not read"):
        bundle.read(GRAPH)
    with pytest.raises(CheckpointError, match="Did you mean save_counter/.ATTRIBUTES"):
        bundle.read("save_counte" + SUFFIX)


@pytest.mark.parametrize("name", ["", "ckpt-7", "ckpt-7.index", "ckpt-7.data-00000-of-00001"])
def test_a_checkpoint_is_found_by_prefix_file_or_folder(name):
    folder = FOLDER / "ckpt"
    assert find_checkpoint(str(folder / name)) == folder / "ckpt-7"


@pytest.mark.parametrize("name", ["ckpt-7", "/home/a/ckpt-7", "sub/ckpt-7", "C:\\\\a\\\\ckpt-7"])
def test_the_checkpoint_file_of_a_folder_says_which_of_several(copied, name):
    (copied / "sub").mkdir()
    for other in ("ckpt-9.index", "sub/ckpt-7.index"):
        shutil.copy(copied / "ckpt-7.index", copied / other)
    (copied / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\nall_paths: "ckpt-9"\n')
    assert find_checkpoint(copied) == copied / ("sub/ckpt-7" if "sub" in name else "ckpt-7")


def test_a_folder_without_checkpoint_file_must_hold_one_checkpoint(copied):
    (copied / "checkpoint").unlink()
    assert find_checkpoint(copied) == copied / "ckpt-7"
    shutil.copy(copied / "ckpt-7.index", copied / "ckpt-9.index")
    refuse(copied, "['ckpt-7', 'ckpt-9']: name one")
    refuse(copied.parent, "expected one *.index", "got []")


@pytest.mark.parametrize("name", ["ckpt-8", "", "../..", "a\0b", "x" * 5000, "/etc/passwd"])
def test_a_checkpoint_file_that_names_what_is_not_there_is_refused(copied, name):
    (copied / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n')
    refuse(copied, "expected one of ['ckpt-7']")


def test_a_path_with_nothing_there_says_what_was_expected(tmp_path):
    refuse(tmp_path / "ckpt-1", "expected ckpt-1.index")
    (tmp_path / "model.ckpt").write_bytes(b"V1")
    refuse(tmp_path / "model.ckpt", "expected model.ckpt.index", "V1 checkpoints")
    os.mkfifo(tmp_path / "pipe.index")
    refuse(tmp_path / "pipe", "expected pipe.index")


def test_every_kind_of_number_comes_back(tmp_path):
    arrays = {
        "bool": (BOOL, np.array([True, False, True])),
        "empty": (FLOAT, np.zeros((3, 0, 2), "<f4")),
        "half": (HALF, np.array([[0.5, -2]], "<f2")),
        "int32": (INT32, np.array([-(2**31), 7], "<i4")),
        "int64": (INT64, np.array([-(2**63), 2**62], "<i8")),
        "scalar": (2, np.array(np.pi, "<f8")),
        "uint8": (4, np.arange(256, dtype="u1")),
    }
    items, data = [], b"\xff"  # everything is unaligned
    later = field(90, 5) + field(91, b"new") + varint(92 << 3 | 1) + b"\xff" * 8  # passed over
    for name, (number, array) in arrays.items():
        value = entry(number, array.shape, array.tobytes(), len(data), more=later)
        items.append((name.encode(), value))
        data += array.tobytes()
    bundle = TensorBundle.open(write(tmp_path, items, data))
    assert list(bundle.shapes) == list(arrays)
    for name, (_, array) in arrays.items():
        actual = bundle.read(name)
        assert actual.dtype == array.dtype
        assert actual.shape == array.shape
        assert actual.tobytes() == array.tobytes()


def test_bfloat16_comes_as_float32_and_other_types_are_listed_only(tmp_path):
    data = np.array([0x3F80, 0xC000, 0x7F80], "<u2").tobytes()
    items = [(b"b", entry(BFLOAT16, (3,), data)), (b"r", entry(20, ()))]
    bundle = TensorBundle.open(write(tmp_path, items, data))
    assert bundle.read("b").tolist() == [1.0, -2.0, np.inf]
    assert bundle.read("b").dtype == np.float32
    assert (list(bundle.shapes), bundle.unread) == (["b"], {"r": "number 20"})


def test_tensors_may_lie_in_several_data_files_but_not_in_one_place(tmp_path):
    on_second = entry(4, (1,), b"z", shard=1)
    items = [(b"", header(2)), (b"a", entry(FLOAT, (6,), ONE)), (b"b", on_second)]
    prefix = write(tmp_path, table(items))
    (tmp_path / "odd.data-00000-of-00002").write_bytes(ONE)
    refuse(prefix, "odd.data-00001-of-00002", "tensor 'b'", "it is missing")
    (tmp_path / "odd.data-00001-of-00002").write_bytes(b"z")
    bundle = TensorBundle.open(prefix)
    assert bundle.read("a").tolist() == [0, 1, 2, 3, 4, 5]
    assert bundle.read("b").tolist() == [ord("z")]
    items = [(b"%d" % i, entry(FLOAT, (6,), ONE)) for i in range(3)]
    refuse(write(tmp_path, items, ONE), "tensors overlap: 72 bytes of them in 24")


def test_a_changed_byte_names_the_tensor_that_it_hit(copied):
    path = copied / "ckpt-7.data-00000-of-00001"
    data = bytearray(path.read_bytes())
    expected = read_expected()
    victim = next(name for name in expected if expected[name].shape == (16, 32))
    data[data.index(expected.pop(victim).tobytes()) + 1000] ^= 1
    path.write_bytes(data)
    bundle = TensorBundle.open(copied)
    message = f"{path}: tensor {victim!r} is damaged: expected 2048 bytes with checksum"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        bundle.read(victim)
    for name in expected:
        assert bundle.read(name).tobytes() == expected[name].tobytes()


def test_a_truncated_data_file_is_refused(copied):
    path = copied / "ckpt-7.data-00000-of-00001"
    size = path.stat().st_size
    bundle = TensorBundle.open(copied)
    for length in (size - 1, size // 2, 0):
        os.truncate(path, length)
        refuse(copied, path.name, f"got {length} bytes")
    with pytest.raises(CheckpointError, match="is damaged: expected 128 bytes .* got 0 with"):
        bundle.read(next(iter(bundle.shapes)))  # cut off since it was opened
    path.unlink()
    refuse(copied, path.name, "it is missing")


def test_an_index_that_is_cut_off_or_changed_is_refused(copied):
    path = copied / "ckpt-7.index"
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 53), *range(len(whole) - 60, len(whole))]:
        path.write_bytes(whole[:length])
        refuse(copied, "ckpt-7.index", "expected")
    path.write_bytes(whole[:1000] + b"?" + whole[1001:])
    refuse(copied, "the block of 6", "is damaged: expected checksum 0x", "got 0x")


def test_a_file_of_another_kind_is_refused_with_its_first_bytes(tmp_path):
    others = [(FOLDER / "vars.npz").read_bytes(), b"\x89HDF\r\n\x1a\n" + bytes(100), b"", MAGIC]
    for content in [*others, b"not a checkpoint\n" * 10]:
        refuse(write(tmp_path, content), "odd.index", f"{len(content)} bytes from {content[:8]!r}")


def test_v1_checkpoints_and_compressed_tables_are_called_that(tmp_path):
    refuse(write(tmp_path, table([(b"", field(1, b"meta"))])), "is of a V1 checkpoint, expected V2")
    refuse(write(tmp_path, table([GOOD], compression=1)), "is compressed (type 1, expected 0)")


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([GOOD], ["a header under the empty key", "none"]),
        ([(b"", header(more=field(2, 1))), GOOD], ["byte order 1, expected 0"]),
        ([(b"", field(1, 1) + field(3, field(2, 2))), GOOD], ["a reader of version 2"]),
        ([(b"", field(1, -1)), GOOD], ["'w' is in data file 0, expected one of -1"]),
        (
            [(b"", b"\x08" + b"\xff" * 9 + b"\x7f"), GOOD],
            ["the header has a number of more than 64 bits"],
        ),
        ([(b"", header()), GOOD, GOOD], ["key b'w' comes after b'w'", "each once"]),
        ([(b"", header()), GOOD, (b"a", b"")], ["key b'a' comes after b'w'"]),
        ([(b"", header()), (b"\xff", GOOD[1])], ["a name is not UTF-8"]),
        ([(b"", header()), (b"\0\1w\xff", GOOD[1]), (b"w", SLICED)], ["'w' has 1 slices"]),
    ],
)
def test_an_index_with_wrong_contents_is_refused(tmp_path, items, words):
    for in_block in (1, 8):
        refuse(write(tmp_path, table(items, in_block=in_block), ONE), "odd.index", *words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (entry(FLOAT, (2, 4), ONE), ["24 bytes, expected 32 for (2, 4) of float32"]),
        (entry(FLOAT, (-2, -3), ONE), ["shape (-2, -3), expected no negative length"]),
        (entry(FLOAT, (2**32, 2**32, 6), ONE), [f"expected {6 * 4 * 2**64} for"]),
        (entry(FLOAT, (0, 2**62)), ["expected less than 2**63 bytes"]),
        (entry(FLOAT, (2,) * 65, ONE), ["65 axes, expected at most 64"]),
        (entry(FLOAT, (), ONE, shape=field(3, 1)), ["unknown rank"]),
        (entry(FLOAT, (6,), ONE, offset=1), ["in bytes 1 to 25", "got 24 bytes"]),
        (entry(FLOAT, (6,), ONE, offset=-8), ["in bytes -8 to 16"]),
        (entry(FLOAT, (6,), ONE, offset=2**63 - 1), [f"in bytes {2**63 - 1} to"]),
        (entry(FLOAT, (2**40,), ONE, size=2**42), [f"0 to {2**42}", "got 24 bytes"]),
        (entry(STRING, (), ONE, size=2**50), [f"0 to {2**50}", "got 24 bytes"]),
        (entry(STRING, (), ONE, offset=9, size=-9), ["in bytes 9 to 0"]),
        (entry(FLOAT, (6,), ONE, shard=1), ["data file 1, expected one of 1"]),
        (entry(FLOAT, (6,), ONE, shard=-1), ["data file -1, expected one of 1"]),
        (entry(FLOAT, (6,), ONE, more=field(7, b"") * 2), ["2 slices: partitioned variables"]),
        (entry(FLOAT, (6,), ONE)[:-3], ["ends early: expected 4 more bytes, got 1"]),
        (entry(FLOAT, (6,), ONE) + b"\xff" * 10, ["a number of more than 64 bits"]),
        (entry(FLOAT, (6,), ONE) + b"\x0b", ["wire type 3, expected 0, 1, 2 or 5"]),
        (field(2, 5), ["wire type 0 in 2, expected 2"]),
        (b"\x12" + varint(2**40), [f"expected {2**40} more bytes, got 0"]),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_with_its_name(tmp_path, value, words):
    refuse(write(tmp_path, [(b"odd/w", value)], ONE), "'odd/w'", *words)


def test_a_block_that_lies_outside_the_file_is_refused(tmp_path):
    for place in (varint(0) + varint(2**40), varint(2**63) + varint(1), varint(30) + varint(99)):
        refuse(write(tmp_path, index_and_footer([(b"w", place)], 0)), "ends outside the file")
    whole = table([(b"", header()), GOOD])
    for footer in (b"\xff" * 40, (b"\0\0" + varint(2**60) + b"\1").ljust(40, b"\0")):
        refuse(write(tmp_path, whole[:-48] + footer + MAGIC), "odd.index")


def test_blocks_that_do_not_fit_together_are_refused(tmp_path):
    for count in (100, 2**32 - 1):
        index = table_of_block(records([(b"", header())]) + count.to_bytes(4, "little"))
        refuse(write(tmp_path, index), f"too small for the {count} restarts")
    refuse(write(tmp_path, table_of_block(b"")), "the block of 0 bytes at byte 0 is too small")
    again = [(b"a", varint(0) + varint(len(RESTARTS)))] * 2
    index = block(RESTARTS) + index_and_footer(again, len(RESTARTS) + 5)
    refuse(write(tmp_path, index), "the place of a block is byte 0, expected 8 or more")
    sharing = table_of_block(records([(b"", header())]) + b"\x05\x01\x00z" + RESTARTS)
    refuse(write(tmp_path, sharing), "has a key that shares 5 bytes with one of 0")


def test_keys_that_unpack_to_very_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("vatt.official.table._MAX_INDEX_BYTES", 1 << 16)
    growing = b"".join(varint(6000 + i) + b"\1\0b" for i in range(20))
    index = table_of_block(records([(b"a" * 6000, b"")]) + growing + RESTARTS)
    assert len(index) < 1 << 16
    refuse(write(tmp_path, index), "expected at most 65536 bytes of names")
    refuse(write(tmp_path, bytes(70_000) + index), "expected at most 65536 bytes, got more")


def test_without_the_package_for_checksums_the_user_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(UserError, match=r'pip install "vatt\[convert\]"'):
        TensorBundle.open(FOLDER / "ckpt")


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Bytes replaced, put in and left out at up to three places."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(out))
        old_size, new_size = rng.choices([0, 1, 4], [1, 3, 1], k=2)
        out[place : place + old_size] = rng.randbytes(new_size)
    return bytes(out)


def read_or_refuse(prefix: Path) -> dict[str, bytes] | None:
    try:
        bundle = TensorBundle.open(prefix)
        return {name: bundle.read(name).tobytes() for name in bundle.shapes}
    except CheckpointError:
        return None


def test_a_randomly_changed_index_is_refused_or_gives_the_same_values(copied):
    rng = random.Random(0)
    path = copied / "ckpt-7.index"
    whole, expected = path.read_bytes(), read_or_refuse(copied)
    for _ in range(500):
        path.write_bytes(mutate(whole, rng))
        assert read_or_refuse(copied) in (None, expected)


def test_a_randomly_changed_index_with_right_checksums_gives_no_other_error(tmp_path):
    rng = random.Random(0)
    items = [(b"", header()), (b"b", entry(BOOL, (2, 3), ONE[:6])), GOOD]
    prefix = write(tmp_path, b"", ONE + ONE)
    outcomes = set()
    for _ in range(500):
        index = table_of_block(mutate(records(items), rng) + RESTARTS)
        prefix.with_suffix(".index").write_bytes(index)
        outcomes.add(read_or_refuse(prefix) is None)
    assert outcomes == {True, False}
