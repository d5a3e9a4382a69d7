"""Mutated files: what reading a clip of each gives, in processes that may crash or hang."""

import random
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import av.logging
import torch
from bench_media import FUZZ_KINDS, make_media

from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.errors import MediaError
from vatt.gpu_check.figures import Row
from vatt.media.clip import Clip, read_clip
from vatt.media.opening import open_media
from vatt.system.machine import num_cores
from vatt.system.workers import Lost, results_in_order

NUM_WAYS = 5
MAX_MOVED_BYTES = 2_000
LIMIT_SECONDS = 10.0
ATOM_HEADER_BYTES = 8  # size and name (ISO 14496-12)
ATOMS_OF_ATOMS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
VIDEO = VideoConfig(num_frames=8, frame_rate=5.0, image_size=32, patch_size=(4, 8, 8))
AUDIO = AudioConfig(sample_rate=16_000, num_samples=25_600, patch_size=256)  # 1.6 s
SAME, SHORTER, OTHER, REFUSED, DAMAGED = "same", "shorter", "other", "refused", "damaged"


def mutated(content: bytes, seed: int) -> bytes:
    """A file's bytes with bits flipped, or with parts zeroed, swapped or cut off."""
    draw = random.Random(seed)
    result = bytearray(content)
    way = seed % NUM_WAYS
    first, second = sorted(draw.randrange(len(result)) for _ in range(2))
    size = min(second - first, len(result) - second, MAX_MOVED_BYTES)
    if way == 0:
        for _ in range(draw.choice([1, 3, 30, 300])):
            result[draw.randrange(len(result))] ^= 1 << draw.randrange(8)
    elif way == 1:
        del result[first:]
    elif way == 2:
        result[first : first + size] = bytes(size)
    elif way == 3 or not (pairs := list(neighbouring_atoms(content, 0, len(content)))):
        result[first : first + size], result[second : second + size] = (
            result[second : second + size],
            result[first : first + size],
        )
    else:
        start, middle, end = draw.choice(pairs)
        result[start:end] = content[middle:end] + content[start:middle]
    return bytes(result)


def neighbouring_atoms(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Start, middle and end of every two atoms of an mp4 file that follow each other."""
    before: int | None = None
    while start + ATOM_HEADER_BYTES <= end:
        size, name = struct.unpack_from(">I4s", content, start)
        if size < ATOM_HEADER_BYTES or start + size > end or not name.isalnum():
            return  # no atom: the file is of another kind, or this is one with a longer header
        if before is not None:
            yield before, start, start + size
        if name in ATOMS_OF_ATOMS:
            yield from neighbouring_atoms(content, start + ATOM_HEADER_BYTES, start + size)
        before, start = start, start + size


def read_mutated(trial: tuple[Path, int]) -> str:
    """Compares a clip of a mutated file (path and seed) with the same clip of the whole file."""
    path, seed = trial
    content = path.read_bytes()
    changed = mutated(content, seed)
    start_seconds = random.Random(seed).uniform(0, 2.5)
    try:
        with av.logging.Capture() as of_opening, open_media(changed):
            pass
        with av.logging.Capture() as of_all:
            clip = _read(changed, start_seconds)
    except MediaError:
        return REFUSED
    complaints = _errors(of_all) - _errors(of_opening)  # opening reads the start of the file
    if not _is_whole(clip):
        return f"{DAMAGED}: wrong shape or values"
    whole = _read(content, start_seconds)
    if _are_equal(clip, whole):
        return SAME
    if _coverage(clip) < _coverage(whole):  # it says itself that something is not there
        return SHORTER
    return f"{DAMAGED}: {complaints}" if complaints else OTHER


def _errors(messages: list[tuple[int, str, str]]) -> set[str]:
    return {text for level, _, text in messages if level <= av.logging.ERROR}


def _read(content: bytes, start_seconds: float) -> Clip:
    return read_clip(content, start_seconds=start_seconds, video=VIDEO, audio=AUDIO)


def _is_whole(clip: Clip) -> bool:
    """Whether the clip has the length and size asked for, of what the file still holds."""
    video, audio = clip.video, clip.audio
    if video is not None and (len(video) != VIDEO.num_frames or min(video.shape[1:3]) != 32):
        return False
    if audio is not None and (len(audio) != AUDIO.num_samples or not audio.isfinite().all()):
        return False
    return video is not None or audio is not None


def _coverage(clip: Clip) -> float:
    return clip.video_coverage + clip.audio_coverage


def _are_equal(one: Clip, other: Clip) -> bool:
    pairs = ((one.video, other.video), (one.audio, other.audio))
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


def _prepare() -> None:
    torch.set_num_threads(1)
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # else a message is left out that another file has caused


def measure_fuzz(folder: Path, *, num_files: int) -> list[Row]:
    """Reads mutated files, each in a process that is ended after `LIMIT_SECONDS`."""
    paths = [make_media(folder, kind, seconds=4) for kind in FUZZ_KINDS]
    trials = [(paths[seed // NUM_WAYS % len(paths)], seed) for seed in range(num_files)]
    outcomes: Counter[str] = Counter()
    with results_in_order(
        read_mutated,
        trials,
        num_workers=min(num_cores(), 1 + num_files // 100),  # a process takes a second to start
        limit_seconds=LIMIT_SECONDS,
        prepare=_prepare,
    ) as results:
        for (path, seed), outcome in zip(trials, results, strict=True):
            if isinstance(outcome, Lost):
                outcome = "hung" if "answer" in outcome.reason else "crashed"
            if outcome not in (SAME, SHORTER, OTHER, REFUSED):
                print(f"{path.name}, seed {seed}: {outcome}", flush=True)
            outcomes[outcome.split(":")[0]] += 1
    case = f"{num_files} mutated files"
    counts = {
        "refused": outcomes[REFUSED],
        "clips equal to those of the whole file": outcomes[SAME],
        "clips that say how much is missing": outcomes[SHORTER],
        "other clips; FFmpeg reports no fault": outcomes[OTHER],
    }
    faults = {"crashes": "crashed", "hangs (10 s)": "hung", "damaged clips": DAMAGED}
    return [
        *(Row(case, what, count) for what, count in counts.items()),
        *(Row(case, what, outcomes[name], at_most=0) for what, name in faults.items()),
    ]
