"""Facts of a shard set: how many clips, hours and captions it holds."""

from dataclasses import dataclass

import numpy as np

from vatt.data.clips import read_duration
from vatt.errors import MediaError
from vatt.shards.shard_set import ShardSet

MAX_READ = 200  # records; the facts of a larger set are estimated from so many of them


@dataclass(frozen=True, kw_only=True)
class SetFacts:
    """Size of a shard set.

    Args:
        num_clips: Number of records.
        num_read: Number of records that were read, evenly spaced.
        hours: Length of their media together.
        num_captions: Number of their captions.
        num_captioned: Number of them that have a caption.
        num_unreadable: Number of them that could not be read.
    """

    num_clips: int
    num_read: int
    hours: float
    num_captions: int
    num_captioned: int
    num_unreadable: int

    def describe(self) -> dict[str, str]:
        """Facts in words; those of a large set are estimates and say so."""
        scale, about = self.num_clips / max(self.num_read, 1), ""
        if self.num_read < self.num_clips:
            about = "about "
        hours = self.hours * scale
        length = f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
        captions = f"{about}{self.num_captions * scale:,.0f}, {self._share(self.num_captioned)}"
        facts = {"clips": f"{self.num_clips:,}", "length": f"{about}{length}"}
        facts["captions"] = f"{captions} of the clips have one" if self.num_captions else "none"
        if self.num_unreadable:
            facts["unreadable"] = self._share(self.num_unreadable)
        return facts

    def _share(self, number: int) -> str:
        return f"{100 * number / max(self.num_read, 1):.3g} %"


def read_set_facts(shards: ShardSet, max_read: int = MAX_READ) -> SetFacts:
    """Reads captions and lengths of a set, or of evenly spaced records of a large one."""
    rows = np.unique(np.linspace(0, len(shards) - 1, min(len(shards), max_read)).round())
    seconds, counts, num_unreadable = 0.0, [], 0
    for row in rows.astype(int).tolist():
        try:
            record = shards[row]
            counts.append(len(record.segments))
            seconds += read_duration(record)
        except MediaError:
            num_unreadable += 1
    return SetFacts(
        num_clips=len(shards),
        num_read=len(rows),
        hours=seconds / 3600,
        num_captions=sum(counts),
        num_captioned=sum(count > 0 for count in counts),
        num_unreadable=num_unreadable,
    )
