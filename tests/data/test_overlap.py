"""Validation clips that are in the training data: found by indexes, without false alarms."""

from collections.abc import Mapping
from pathlib import Path

from vatt.data.overlap import repeated_clips, warning_of_overlap
from vatt.shards.shard_set import ShardSet
from vatt.shards.writer import ShardWriter


def write(folder: Path, shards: Mapping[str, Mapping[str, int]]) -> ShardSet:
    """Shards of media with these names and sizes, which are not media at all."""
    folder.mkdir()
    for name, clips in shards.items():
        with ShardWriter(folder / f"{name}.tar") as writer:
            for key, size in clips.items():
                writer.add(key, bytes(size), "mp4")
    return ShardSet(folder)


def test_clips_agree_in_size_and_in_the_end_of_their_names(tmp_path: Path) -> None:
    clips = {"cat/1": 700, "cat/2": 700, "dog/1": 700, "tree/3": 900, "4": 50}
    train = write(tmp_path / "train", {"a": {"media/tree/3": 900, "4": 51}, "b": {"cat/1": 700}})
    validation = write(tmp_path / "validation", {"x": clips})
    keys = [validation.key(row) for row in repeated_clips([train], validation, 5)]
    assert keys == ["cat/1", "tree/3"]  # dog/1 is another file than cat/1, though of its size
    assert repeated_clips([train], validation, 3) == [0]
    assert repeated_clips([], validation, 5) == []


def test_shards_that_are_trained_on_repeat_all_their_clips(tmp_path: Path) -> None:
    train = write(tmp_path / "train", {"a": {"1": 10, "2": 10}, "b": {"3": 10}})
    (tmp_path / "link").symlink_to(tmp_path / "train")
    assert repeated_clips([train], ShardSet(tmp_path / "link"), 3) == [0, 1, 2]
    other = write(tmp_path / "other", {"a": {"1": 11}})
    assert repeated_clips([other, train], ShardSet(tmp_path / "link"), 2) == [0, 1]


def test_no_shard_is_read(tmp_path: Path) -> None:
    train = write(tmp_path / "train", {"a": {"1": 10, "2": 10}})
    validation = write(tmp_path / "validation", {"x": {"1": 10, "2": 11}})
    for path in (*train.paths, *validation.paths):
        path.unlink()
    assert repeated_clips([train], validation, 2) == [0]


def test_the_warning_counts_and_says_what_to_do_but_not_of_a_chance_match(tmp_path: Path) -> None:
    clips = {f"{number:06d}": 1000 + number for number in range(200)}
    train = write(tmp_path / "train", {"a": {**clips, "000001": 5, "000002": 5}})
    validation = write(tmp_path / "validation", {"x": clips})
    warning = warning_of_overlap([train], validation, 200)
    assert warning is not None
    assert "198 of 200 validation clips" in warning
    assert "000000" in warning
    assert "--val" in warning
    few = write(tmp_path / "few", {"x": dict(list(clips.items())[3:5])})
    assert warning_of_overlap([few], validation, 200) is None  # 1 %
    assert warning_of_overlap([few], validation, 100) is not None
