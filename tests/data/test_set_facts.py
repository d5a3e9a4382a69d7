"""Facts of a shard set: read from all records, or estimated from some."""

from pathlib import Path

import pytest

from vatt.data.clips import read_duration
from vatt.data.set_facts import SetFacts, read_set_facts
from vatt.shards.shard_set import ShardSet


def test_the_facts_are_those_of_the_records(tiny_shards: Path) -> None:
    shards = ShardSet(tiny_shards / "train")
    facts = read_set_facts(shards)
    assert (facts.num_clips, facts.num_read, facts.num_unreadable) == (24, 24, 0)
    assert facts.num_captions == sum(len(one.segments) for one in shards)
    assert facts.num_captioned == sum(bool(one.segments) for one in shards)
    seconds = sum(read_duration(shards[row]) for row in range(24))
    assert 3600 * facts.hours == pytest.approx(seconds)
    assert facts.describe()["length"] == f"{seconds / 60:.1f} minutes"


def test_a_large_set_is_estimated_and_says_so(tiny_shards: Path) -> None:
    facts = read_set_facts(ShardSet(tiny_shards / "train"), max_read=5)
    assert (facts.num_clips, facts.num_read) == (24, 5)
    large = SetFacts(
        num_clips=1000,
        num_read=100,
        hours=0.5,
        num_captions=50,
        num_captioned=40,
        num_unreadable=3,
    )
    assert large.describe() == {
        "clips": "1,000",
        "length": "about 5.0 hours",
        "captions": "about 500, 40 % of the clips have one",
        "unreadable": "3 %",
    }
    empty = SetFacts(
        num_clips=1, num_read=1, hours=0.0, num_captions=0, num_captioned=0, num_unreadable=0
    )
    assert empty.describe()["captions"] == "none"
