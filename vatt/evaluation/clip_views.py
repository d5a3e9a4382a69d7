"""Reading of clips for evaluation, in worker processes and in the order of the items."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vatt.config.geometry import AudioGeometry, VideoGeometry
from vatt.errors import MediaError
from vatt.media.reader_process import LIMIT_SECONDS
from vatt.sets.items import Item
from vatt.system.workers import Lost, results_in_order

AHEAD_PER_WORKER = 2  # clips read while an earlier one hangs; 4 windows of 32 × 224² are 19 MB


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """Plan of the views to read of each clip.

    Args:
        video: Geometry and frame rate of video. None: no video is read.
        audio: Geometry of audio. None: no audio is read.
        num_windows: Windows, evenly spread over the clip; of the picture the middle of each.
    """

    video: VideoGeometry | None
    audio: AudioGeometry | None
    num_windows: int = 4

    def describe(self) -> dict[str, Any]:
        """Plan as plain values, for a result file."""
        plan: dict[str, Any] = {"num_windows": self.num_windows}
        if self.video is not None:
            names = ("num_frames", "frame_rate", "image_size")
            plan |= {"num_crops": 1, **{name: getattr(self.video, name) for name in names}}
        if self.audio is not None:
            plan |= {n: getattr(self.audio, n) for n in ("num_samples", "sample_rate")}
        return plan


@dataclass(frozen=True, kw_only=True)
class ItemViews:
    """The views of a clip.

    Args:
        video: uint8 `[windows, T, H, W, C]`; H and W of the file if the plan names no size. None:
            not requested, or no picture.
        audio: float32 `[windows, S]` in about [-1, 1]; None: not requested, or no sound.
        fault: Reason why the clip cannot be used; "" if it can.
    """

    video: NDArray[np.uint8] | None = None
    audio: NDArray[np.float32] | None = None
    fault: str = ""


def read_item(job: tuple[Item, ViewPlan]) -> ItemViews:
    """Reads the views of a clip; called in a worker process."""
    from vatt.media.clip import probe
    from vatt.preprocess.evaluation_views import read_audio_views, read_video_views

    item, plan = job
    assert item.source is not None
    windows: dict[str, Any] = {
        "num_windows": plan.num_windows,
        "start_seconds": item.start_seconds,
        "end_seconds": item.end_seconds,
    }
    try:
        info = probe(item.source)
        video = audio = None
        if plan.video is not None and info.has_video:
            video = read_video_views(item.source, plan.video, num_crops=1, **windows).numpy()
        if plan.audio is not None and info.has_audio:
            audio = read_audio_views(item.source, plan.audio, **windows).numpy()
    except MediaError as error:
        return ItemViews(fault=error.reason)
    if video is None and audio is None:
        asked = {"picture": plan.video, "sound": plan.audio}
        return ItemViews(fault=f"has no {' or '.join(k for k, v in asked.items() if v)}")
    return ItemViews(video=video, audio=None if audio is None else np.ascontiguousarray(audio))


def read_items(items: Sequence[Item], plan: ViewPlan, *, num_workers: int) -> Iterator[ItemViews]:
    """Reads the views of each clip, in order; a clip that hangs or crashes its process has a fault.

    Args:
        items: Clips with media.
        plan: Views of each clip.
        num_workers: Processes that read; 0: this process, without limits of time and memory.
    """
    with results_in_order(
        read_item,
        ((item, plan) for item in items),
        num_workers=num_workers,
        limit_seconds=LIMIT_SECONDS,
        prepare=_import_media,
        most_ahead=AHEAD_PER_WORKER * num_workers,
    ) as results:
        for views in results:
            yield ItemViews(fault=views.reason) if isinstance(views, Lost) else views


def _import_media() -> None:
    import torch

    import vatt.media.clip
    import vatt.preprocess.evaluation_views  # noqa: F401

    torch.set_num_threads(1)  # each process is one of many
