"""Annotation files as they are distributed, with the user's own files; what is wrong in them."""

import json
import math
import shutil
from pathlib import Path

import pytest

from vatt.errors import UserError
from vatt.sets.retrieval import read_retrieval_set, read_shard_set

CSV = "key,vid_key,video_id,sentence\n"


@pytest.fixture
def videos(tmp_path: Path, tiny_corpus: Path) -> Path:
    """Five files with ids of MSR-VTT, one in a sub-folder and of another extension."""
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    source = sorted((tiny_corpus / "train").glob("*.mp4"))[0]
    for name in ("video1.mp4", "video2.mp4", "video3.mp4", "more/video4.MKV", "zXy_-1.mp4"):
        shutil.copy(source, folder / name)
    return folder


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def msrvtt(videos=None, sentences=None):
    splits = {"video1": "test", "video2": "train", "video4": "test", "video9": "test"}
    if videos is None:
        videos = [{"video_id": v, "split": s, "category": 1} for v, s in splits.items()]
    if sentences is None:
        sentences = [
            {"video_id": v, "caption": f"{v} caption {n}", "sen_id": n}
            for n in range(2)
            for v in splits
        ]
    return {"info": {}, "videos": videos, "sentences": sentences}


def youcook2(**changes):
    pieces = [
        {"segment": [1, 2], "id": 0, "sentence": "crack the eggs"},
        {"segment": [2.5, 4], "id": 1, "sentence": "beat them"},
    ]
    video = {"subset": "validation", "recipe_type": "101", "duration": 5, "annotations": pieces}
    other = {**video, "subset": "training"}
    return {"database": {"zXy_-1": {**video, **changes}, "absent1": video, "video1": other}}


def test_msrvtt_1k_csv_gives_a_caption_for_each_video_that_is_there(tmp_path, videos):
    lines = 'ret0,msr1,video1,a dog barks\nret1,msr4,video4,"red, and blue"\nret2,m,video8,gone\n'
    path = write(tmp_path / "MSRVTT_JSFUSION_test.csv", CSV + lines)
    found = read_retrieval_set(path, videos=videos)
    assert [item.key for item in found.items] == ["video1", "video4"]
    assert [item.captions for item in found.items] == [("a dog barks",), ("red, and blue",)]
    assert found.items[1].source == str(videos / "more" / "video4.MKV")
    assert found.num_listed == 3
    assert found.missing[0].where.endswith("test.csv, line 4")
    assert "video8 has no file in" in found.missing[0].reason
    assert found.name == "own"  # not the thousand that the paper's numbers are of


def test_the_papers_set_is_known_by_its_thousand_videos(tmp_path, videos):
    lines = "".join(f"ret{n},msr{n},video{n},caption {n}\n" for n in range(1000))
    found = read_retrieval_set(write(tmp_path / "a.csv", CSV + lines), videos=videos)
    assert found.name == "msrvtt-1k"
    assert (len(found.items), found.num_listed) == (4, 1000)


def test_a_list_of_videos_with_captions_is_read(tmp_path, videos):
    entries = [
        {"video": "video1.mp4", "caption": "a"},
        {"video": "more/video4.MKV", "caption": ["b", "c"]},
        {"video_id": "video2", "caption": "d"},
    ]
    found = read_retrieval_set(write(tmp_path / "a.json", entries), videos=videos)
    assert [item.captions for item in found.items] == [("a",), ("b", "c"), ("d",)]
    assert [Path(item.source).stem for item in found.items] == ["video1", "video4", "video2"]


def test_msrvtt_json_gives_all_captions_of_a_split(tmp_path, videos):
    path = write(tmp_path / "MSRVTT_data.json", msrvtt())
    found = read_retrieval_set(path, videos=videos)
    assert found.name == "msrvtt-full"
    assert [item.key for item in found.items] == ["video1", "video4"]
    assert found.items[0].captions == ("video1 caption 0", "video1 caption 1")
    assert [fault.where for fault in found.missing] == ["MSRVTT_data.json, videos[3]"]
    train = read_retrieval_set(path, videos=videos, split="train")
    assert [item.key for item in train.items] == ["video2"]


def test_youcook2_gives_the_annotated_pieces_of_the_validation_videos(tmp_path, videos):
    path = write(tmp_path / "youcookii_annotations_trainval.json", youcook2())
    found = read_retrieval_set(path, videos=videos)
    assert found.name == "youcook2"
    assert [(i.start_seconds, i.end_seconds) for i in found.items] == [(1, 2), (2.5, 4)]
    assert [i.captions for i in found.items] == [("crack the eggs",), ("beat them",)]
    assert found.num_listed == 4
    assert "absent1, annotations[1]" in found.missing[1].where
    training = read_retrieval_set(path, videos=videos, split="training")
    assert {Path(item.source).stem for item in training.items} == {"video1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,video,sentence\na,b,c\n", "line 1: lacks the column video_id: the header"),
        (CSV + "ret0,m,video1,one\nret1,m,video1,two\n", "line 3: 'video1' is in a.csv, line 2"),
        (CSV + "ret0,m,video1,one, two\n", "line 2: has 5 columns, the header 4"),
        (CSV + "ret0,m,video1\n", "line 2: has 3 columns, the header 4"),
        (
            CSV + '\nr,m,video1,one\nr,m,video2,"two\nr,m,video4,x\n',
            "line 4: cannot be read as csv",
        ),
        (CSV + "r,m,video1,one\nr,m,video1.mp4,two\n", "line 3: 'video1.mp4' is the same clip as"),
        ("video_id,sentence,video_id\na,b,c\n", "line 1: has the column 'video_id' twice"),
        (
            CSV + 'r,m,video1,"one\n\nmore"\nr,m,"video1","two\n"\n',
            "line 5: 'video1' is in a.csv, line 2",
        ),
        (CSV, "a.csv describes no clip"),
        (CSV + "ret0,m,video1,a\nret1,m,,b\nret2,m,video2,\n", "line 3: has no video_id"),
        (CSV + "ret0,m,video8,a\n", "has none of the 1 files asked for"),
        ("", "the header must name video_id,sentence, and names nothing"),
    ],
)
def test_a_csv_that_cannot_be_right_is_refused_by_line(tmp_path, videos, text, message):
    with pytest.raises(UserError) as error:
        read_retrieval_set(write(tmp_path / "a.csv", text), videos=videos)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        (json.dumps(youcook2(), indent=1)[:150], "line 10 column"),
        ('{"database": {"a": {}, "b": {}, "a": {}}}', "an object has the key 'a' twice"),
        (youcook2(annotations=[{"segment": [1, math.inf]}]), "Infinity is no number of JSON"),
        ('{"database": [1]}', "database must be an object, got [1]"),
        ({"videos": {}, "sentences": []}, "videos must be a list, got {}"),
        ({"videos": [], "sentences": None}, "sentences must be a list, got None"),
        ([], "a.json describes no clip"),
        ([{"video": "video1", "caption": "  "}], "caption must be a text or a list of texts"),
        (msrvtt(sentences=[{"video_id": "video1", "caption": "a"}]), "'video4' has no sentence"),
        (msrvtt(sentences=[{"video_id": "video1", "caption": ""}]), "needs video_id and caption"),
        (youcook2(annotations=[{"segment": [False, True], "sentence": "a"}]), "needs segment"),
        (youcook2(annotations=[{"segment": [0, 1], "sentence": " "}]), "needs segment"),
        ({"clips": []}, "is neither MSR-VTT's"),
        (["video1"], "a.json, entry 0: needs video (or video_id) and caption, got 'video1'"),
        ([{"video": "video1", "caption": []}], "caption must be a text or a list of texts"),
        ([{"video": "video1", "caption": "a"}] * 2, "'video1' is in a.json, entry 0 already"),
        (msrvtt(videos=[{"video_id": "video1"}]), "videos[0]: needs video_id and split"),
        (msrvtt(videos=msrvtt()["videos"] * 2), "videos[4]: 'video1' is in a.json, videos[0]"),
        (msrvtt(sentences=[{"video_id": "x", "caption": "a"}]), "'x' is not among the videos"),
        (msrvtt(sentences=[{"video_id": "video1"}]), "sentences[0]: needs video_id and caption"),
        (youcook2(annotations=None), "a.json, zXy_-1: needs subset and annotations"),
        (youcook2(annotations=[{"segment": [3, 2], "sentence": ""}]), "needs segment [start, end]"),
        (
            youcook2(annotations=[{"segment": [1, 2], "id": 0, "sentence": "a"}] * 2),
            "'zXy_-1:0' is in a.json, zXy_-1, annotations[0] already",
        ),
    ],
)
def test_a_json_that_cannot_be_right_is_refused_by_entry(tmp_path, videos, content, message):
    with pytest.raises(UserError) as error:
        read_retrieval_set(write(tmp_path / "a.json", content), videos=videos)
    assert message in str(error.value)


def test_annotations_come_from_any_system_and_are_there(tmp_path, videos):
    csv = tmp_path / "a.csv"
    header = "video_id, key, vid_key, sentence\n"
    csv.write_bytes(
        f"\ufeff{header}video1, r, m, a dog\nvideo4,r,m,ü".replace("\n", "\r\n").encode()
    )
    found = read_retrieval_set(csv, videos=videos)
    assert [item.captions for item in found.items] == [("a dog",), ("ü",)]
    listed = tmp_path / "a.json"
    listed.write_bytes(b'\xef\xbb\xbf[{"video": "video1",\r\n "caption": "a"}]')
    assert read_retrieval_set(listed, videos=videos).items[0].captions == ("a",)
    csv.write_bytes(CSV.encode("utf-16"))
    with pytest.raises(UserError, match=r"a\.csv is not UTF-8 text"):
        read_retrieval_set(csv, videos=videos)
    for name in ("none.csv", "none.json"):
        with pytest.raises(UserError, match=f"{name} cannot be read .No such file"):
            read_retrieval_set(tmp_path / name, videos=videos)


def test_splits_videos_and_files_that_do_not_fit_are_named(tmp_path, videos):
    path = write(tmp_path / "a.json", msrvtt())
    with pytest.raises(UserError, match="has no split 'tset': it has test, train"):
        read_retrieval_set(path, videos=videos, split="tset")
    with pytest.raises(UserError, match="give the folder that holds them"):
        read_retrieval_set(path)
    with pytest.raises(UserError, match="has no splits"):
        read_retrieval_set(write(tmp_path / "a.csv", CSV), videos=videos, split="test")
    shutil.copy(videos / "video1.mp4", videos / "more" / "video1.webm")
    with pytest.raises(UserError, match="several files for video1: more/video1.webm, video1.mp4"):
        read_retrieval_set(path, videos=videos)


def test_shards_give_records_or_their_timed_captions(tiny_shards):
    records = read_shard_set(tiny_shards / "train")
    pieces = read_shard_set(tiny_shards / "train", clips="segments")
    assert len(records.items) == 24
    assert len(pieces.items) == sum(len(item.captions) for item in records.items) > 24
    assert all(len(item.captions) == 1 for item in pieces.items)
    assert all(item.end_seconds > item.start_seconds for item in pieces.items)
    for found in (records, pieces):
        assert len({item.key for item in found.items}) == len(found.items)
