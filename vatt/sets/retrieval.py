"""Sets for retrieval: tar shards, and the annotation files of MSR-VTT and YouCook2 as distributed.

- MSR-VTT 1k-A: `MSRVTT_JSFUSION_test.csv` with the columns `key,vid_key,video_id,sentence`; or a
  JSON list of objects with `video` (or `video_id`) and `caption`, a text or a list of them.
- MSR-VTT, all of a split: `MSRVTT_data.json` or `test_videodatainfo.json` with `videos` and
  `sentences`.
- YouCook2: `youcookii_annotations_trainval.json`; each annotated segment is a clip.

Source: a copy of MSR-VTT's csv in a public repository; code in public repositories that reads the
json files.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from vatt.errors import Fault, MediaError, UserError
from vatt.sets.items import EvaluationSet, Item, find_repeated, items_of, refuse, with_media
from vatt.system.csv_rows import read_table
from vatt.system.files import read_json

MSRVTT_COLUMNS = ("video_id", "sentence")
Clips = Literal["records", "segments"]


def read_retrieval_set(
    data: str | os.PathLike[str],
    *,
    videos: str | os.PathLike[str] | None = None,
    split: str | None = None,
    clips: Clips = "records",
) -> EvaluationSet:
    """Reads a retrieval set from shards or an annotation file.

    Args:
        data: Folder or address of tar shards, or an annotation file.
        videos: Folder of the files that an annotation file names by their ids.
        split: Split of an annotation file that has several. None: the split of published results.
        clips: For shards: `records`: each record is a clip with all its captions; `segments`: each
            timed caption is a clip, from its start to its end.

    Raises:
        UserError: the file has an unknown format, entries are invalid (the error names the lines),
            or all media are missing.
        ShardError: a shard cannot be used, or the folder contains no media.
    """
    path = Path(data)
    if path.suffix not in (".csv", ".json"):
        if videos is not None or split is not None:
            raise UserError(f"{data} is no .csv or .json: videos and split are for these")
        return read_shard_set(data, clips=clips)
    if videos is None:
        raise UserError(f"{path} names videos by their ids: give the folder that holds them")
    if path.suffix == ".csv":
        if split is not None:
            raise UserError(f"{path} has no splits: leave split out")
        return _read_msrvtt_csv(path, videos)
    content = read_json(path, object_pairs_hook=_without_twins, parse_constant=_refuse_constant)
    if isinstance(content, list):
        return _read_caption_list(path, content, videos)
    if isinstance(content, dict) and "database" in content:
        return _read_youcook2(path, content, videos, split=split or "validation")
    if isinstance(content, dict) and {"videos", "sentences"} <= content.keys():
        return _read_msrvtt_json(path, content, videos, split=split or "test")
    raise UserError(
        f"{path} is neither MSR-VTT's (keys videos and sentences, or a list) nor YouCook2's "
        "(key database): give one of these, or shards"
    )


def read_shard_set(folder: str | os.PathLike[str], *, clips: Clips = "records") -> EvaluationSet:
    """Clips of a shard folder: records, or timed captions.

    Raises:
        ShardError: a shard cannot be used.
        UserError: there are no clips.
    """
    from vatt.shards.shard_set import ShardSet

    shards = ShardSet(folder)
    items: list[Item] = []
    absent: list[Item] = []
    for number in range(len(shards)):
        name = f"{shards.shard(number)}:{shards.key(number)}"
        clip = Item(key=name, place=name)
        try:
            record = shards[number]
        except MediaError as error:
            absent.append(replace(clip, absence=error.reason))
            continue
        clip = replace(clip, source=record.media)
        if record.media is None:
            absent.append(replace(clip, absence="has no media file"))
        elif clips == "records":
            captions = tuple(segment.text for segment in record.segments)
            items.append(replace(clip, captions=captions))
        else:
            items += [
                replace(
                    clip,
                    key=f"{name}:{place}",
                    start_seconds=segment.start_seconds,
                    end_seconds=None if math.isinf(segment.end_seconds) else segment.end_seconds,
                    captions=(segment.text,),
                )
                for place, segment in enumerate(record.segments)
            ]
    if not items:
        raise UserError(f"{folder} has no clip to evaluate on")
    description = {"shards": str(folder), "clips": clips}
    return EvaluationSet(
        name="own", items=tuple(items), absent=tuple(absent), description=description
    )


def _read_msrvtt_csv(path: Path, videos: str | os.PathLike[str]) -> EvaluationSet:
    """Reads MSR-VTT 1k-A from its csv: one caption for each of 1,000 videos."""

    def item_of(place: str, row: dict[str, str]) -> Item:
        empty = [column for column in MSRVTT_COLUMNS if not row[column]]
        if empty:
            raise UserError(f"has no {' and no '.join(empty)}")
        return Item(key=row["video_id"], place=place, captions=(row["sentence"],))

    rows = ((f"{path.name}, line {n}", row) for n, row in read_table(path, MSRVTT_COLUMNS))
    return _msrvtt_1k(path, items_of(path, rows, item_of), videos)


def _read_caption_list(
    path: Path, content: Sequence[Any], videos: str | os.PathLike[str]
) -> EvaluationSet:
    """Reads MSR-VTT 1k-A, or any other set, from a JSON list of videos with captions."""

    def item_of(place: str, entry: Any) -> Item:
        video = caption = None
        if isinstance(entry, dict):
            video, caption = entry.get("video", entry.get("video_id")), entry.get("caption")
        captions = [caption] if isinstance(caption, str) else caption
        if not isinstance(video, str) or not isinstance(captions, list):
            raise UserError(f"needs video (or video_id) and caption, got {entry!r:.80}")
        if not captions or not all(_is_text(text) for text in captions):
            raise UserError(f"caption must be a text or a list of texts, got {caption!r:.80}")
        return Item(key=video, place=place, captions=tuple(captions))

    entries = ((f"{path.name}, entry {number}", entry) for number, entry in enumerate(content))
    return _msrvtt_1k(path, items_of(path, entries, item_of), videos)


def _read_msrvtt_json(
    path: Path, content: dict[str, Any], videos: str | os.PathLike[str], *, split: str
) -> EvaluationSet:
    """Reads a split of MSR-VTT: all videos with 20 captions each."""
    faults: list[Fault] = []
    items: list[Item] = []
    for key in ("videos", "sentences"):
        if not isinstance(content[key], list):
            raise UserError(f"{path}: {key} must be a list, got {content[key]!r:.80}")
    for number, entry in enumerate(content["videos"]):
        place = f"{path.name}, videos[{number}]"
        known = entry if isinstance(entry, dict) else {}
        video, part = known.get("video_id"), known.get("split")
        if isinstance(video, str) and isinstance(part, str):
            items.append(Item(key=video, place=place, splits=(part,)))
        else:
            faults.append(Fault(place, "needs video_id and split"))
    captions: dict[str, list[str]] = {item.key: [] for item in items}
    for number, entry in enumerate(content["sentences"]):
        place = f"{path.name}, sentences[{number}]"
        if not isinstance(entry, dict) or not _is_text(entry.get("caption")):
            faults.append(Fault(place, "needs video_id and caption"))
        elif entry.get("video_id") not in captions:
            faults.append(Fault(place, f"{entry.get('video_id')!r} is not among the videos"))
        else:
            captions[entry["video_id"]].append(entry["caption"])
    chosen = [
        replace(item, captions=tuple(captions[item.key])) for item in items if split in item.splits
    ]
    mute = [Fault(i.place, f"{i.key!r} has no sentence") for i in chosen if not i.captions]
    refuse(path, [*faults, *find_repeated(items), *mute])
    _expect_split(path, split, {item.splits[0] for item in items})
    return with_media("msrvtt-full", chosen, videos, path, split=split)


def _read_youcook2(
    path: Path, content: dict[str, Any], videos: str | os.PathLike[str], *, split: str
) -> EvaluationSet:
    """Reads a split of YouCook2: annotated segments of videos with one sentence each."""
    database = content["database"]
    if not isinstance(database, dict):
        raise UserError(f"{path}: database must be an object, got {database!r:.80}")
    names: list[str] = []

    def pieces() -> Iterator[tuple[str, tuple[str | None, Any]]]:
        for video, entry in database.items():
            place = f"{path.name}, {video}"
            listed = entry.get("annotations") if isinstance(entry, dict) else None
            if not isinstance(listed, list) or not isinstance(entry.get("subset"), str):
                yield place, (None, None)
            elif entry["subset"] == split:
                for number, piece in enumerate(listed):
                    yield f"{place}, annotations[{number}]", (video, piece)

    def item_of(place: str, named: tuple[str | None, Any]) -> Item:
        video, piece = named
        if video is None:
            raise UserError("needs subset and annotations")
        names.append(video)
        return _youcook2_item(video, piece, place)

    items = items_of(path, pieces(), item_of)
    _expect_split(path, split, {entry["subset"] for entry in database.values()})
    return with_media("youcook2", items, videos, path, file_names=names, split=split)


def _msrvtt_1k(path: Path, items: Sequence[Item], videos: str | os.PathLike[str]) -> EvaluationSet:
    """Set with the name of MSR-VTT 1k-A if it has its 1,000 videos, else with the name `own`."""
    published = len(items) == 1000 and all(item.key.startswith("video") for item in items)
    return with_media("msrvtt-1k" if published else "own", items, videos, path)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _youcook2_item(video: str, piece: Any, place: str) -> Item:
    times = piece.get("segment") if isinstance(piece, dict) else None
    if (
        not isinstance(times, list)
        or len(times) != 2
        or not all(isinstance(t, int | float) and not isinstance(t, bool) for t in times)
        or not 0 <= times[0] < times[1] < math.inf
        or not _is_text(piece.get("sentence"))
    ):
        raise UserError(f"needs segment [start, end] and sentence, got {piece!r:.80}")
    return Item(
        key=f"{video}:{piece.get('id', place)}",
        place=place,
        start_seconds=float(times[0]),
        end_seconds=float(times[1]),
        captions=(piece["sentence"],),
    )


def _expect_split(path: Path, split: str, splits: set[str]) -> None:
    if split not in splits:
        raise UserError(f"{path} has no split {split!r}: it has {', '.join(sorted(splits))}")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; json itself would keep the last of several entries with one key."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {twin!r} twice")
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
