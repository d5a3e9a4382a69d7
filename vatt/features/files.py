"""Features of one file: vectors with their times, in memory and on disk."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from vatt.errors import UserError
from vatt.media.clip import Clip
from vatt.preprocess.windows import WindowPlan
from vatt.system.bounds import check_unpacked, unpacked_bytes
from vatt.system.extras import load_extra
from vatt.system.files import write_atomically

if TYPE_CHECKING:
    import pandas

FORMATS = ("npz", "safetensors")
_TIMES = ("start_seconds", "end_seconds")
COVERAGE = "_coverage"
MOST_SHOWN = 10  # windows, in a notebook
_METADATA = "metadata"  # as JSON: an entry of an npz; safetensors would shuffle several


@dataclass(frozen=True, kw_only=True)
class Features:
    """Vectors of the windows of one file, by name: `features["video_vt"]` is an array.

    Args:
        arrays: float32 `[N, D]` on the CPU by name: `video_va`, `video_vt`, `audio_va`, … in the
            common spaces, `video` and `audio` of the backbone, `video_tokens` `[N, 1 + L, D]`.
            A modality that the file lacks has no array; rows of windows without it are zeros.
        start_seconds: float64 `[N]`, from the file's start.
        end_seconds: float64 `[N]`; not after the file's end.
        coverage: float32 `[N]` by modality: share of each window that the file fills.
        metadata: Further facts, such as the model.

    Example:
        >>> features = vatt.Features.load("features/talk.mp4.npz")
        >>> features["video_vt"], features.start_seconds  # [N, D], [N]
    """

    arrays: Mapping[str, Tensor]
    start_seconds: Tensor
    end_seconds: Tensor
    coverage: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses arrays of different lengths."""
        rows = {name: len(value) for name, value in self._tensors().items()}
        if len(set(rows.values())) > 1:
            raise UserError(f"features must have one row for each window, got rows {rows}")

    def __len__(self) -> int:
        """Number of windows, `N`."""
        return len(self.start_seconds)

    def __repr__(self) -> str:
        """Number of windows, arrays with their widths, and times."""
        arrays = ", ".join(f"{name} {list(value.shape[1:])}" for name, value in self.arrays.items())
        end = f" until {float(self.end_seconds[-1]):.4g} s" if len(self) else ""
        source = f"{self.metadata['source']!r}, " if "source" in self.metadata else ""
        return f"Features({source}{len(self)} windows{end}, {arrays or 'no arrays'})"

    def keys(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self.arrays)

    def to_pandas(self) -> "pandas.DataFrame":
        """Table with one row per window: times, coverage by modality, and the vectors.

        Raises:
            UserError: pandas is not installed.

        Example:
            >>> features.to_pandas()[["start_seconds", "video_vt"]]
        """
        pandas = load_extra("pandas", UserError("to_pandas needs pandas: pip install pandas"))
        tensors = {name: self._tensors()[name] for name in (*_TIMES, *self._tensors())}
        columns = {name: list(value.numpy()) for name, value in tensors.items()}
        return pandas.DataFrame(columns)

    def _repr_html_(self) -> str:
        """Table of a notebook: times and coverage of the first windows."""
        from html import escape

        from tabulate import tabulate

        columns = {name: getattr(self, name) for name in _TIMES}
        columns |= {f"{name}{COVERAGE}": value for name, value in self.coverage.items()}
        shown = {name: value[:MOST_SHOWN].tolist() for name, value in columns.items()}
        table = tabulate(shown, headers="keys", tablefmt="html", floatfmt=".2f", showindex=True)
        more = len(self) - MOST_SHOWN
        rest = f"<p>and {more} more windows</p>" if more > 0 else ""
        return f"<p>{escape(repr(self))}</p>{table}{rest}"

    def __getitem__(self, name: str) -> Tensor:
        """An array by its name.

        Raises:
            KeyError: no such array; names the arrays.
        """
        if name not in self.arrays:
            raise KeyError(f"no features {name!r}, there are {', '.join(self.arrays)}")
        return self.arrays[name]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the features to one file; the same features give the same bytes.

        Args:
            path: File to write, `.npz` (numpy) or `.safetensors`. An interrupted call leaves no
                partial file.

        Raises:
            UserError: the file has another extension.
            OSError: the file cannot be written; the error names it.
        """
        from safetensors.torch import save

        out = Path(path)
        _check_format(out)
        tensors = self._tensors()
        text = json.dumps(dict(self.metadata), sort_keys=True)
        if out.suffix == ".npz":
            buffer = io.BytesIO()
            arrays: dict[str, Any] = {name: value.numpy() for name, value in tensors.items()}
            np.savez(buffer, **(arrays | {_METADATA: np.array(text)}))
            write_atomically(out, buffer.getvalue())
        else:
            contiguous = {name: value.contiguous() for name, value in tensors.items()}
            write_atomically(out, save(contiguous, metadata={_METADATA: text}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote.

        Raises:
            UserError: the file does not exist or is not a file of features.
        """
        tensors, metadata = _read(Path(path))
        try:
            return cls.from_tensors(tensors, metadata)
        except KeyError as error:
            missing = error.args[0]
            raise UserError(f"{path} holds no features of vatt: {missing} is missing") from error

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Self:
        """Features from tensors by their names on disk: times, coverage and arrays."""
        arrays = dict(tensors)
        times = {name: arrays.pop(name) for name in _TIMES}
        coverage = {
            name.removesuffix(COVERAGE): arrays.pop(name)
            for name in tensors
            if name.endswith(COVERAGE)
        }
        return cls(arrays=arrays, coverage=coverage, metadata=metadata, **times)

    def _tensors(self) -> dict[str, Tensor]:
        times = {name: getattr(self, name) for name in _TIMES}
        coverage = {f"{name}{COVERAGE}": value for name, value in self.coverage.items()}
        return {**self.arrays, **times, **coverage}


def read_metadata(path: Path) -> dict[str, str]:
    """Reads the metadata of a file of features, without its arrays.

    Raises:
        UserError: the file does not exist or is not a file of features.
    """
    return _read(path, only_metadata=True)[1]


def _check_format(path: Path) -> None:
    if path.suffix[1:] not in FORMATS:
        raise UserError(f"features are kept as .npz or .safetensors, got {path}")


def _read(path: Path, only_metadata: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    _check_format(path)
    try:
        if path.suffix == ".npz":
            with path.open("rb") as open_file, np.load(open_file, allow_pickle=False) as archive:
                check_unpacked(path, unpacked_bytes(archive.zip))
                metadata = json.loads(str(archive[_METADATA]))
                names = [] if only_metadata else [n for n in archive.files if n != _METADATA]
                return {name: torch.from_numpy(archive[name]) for name in names}, metadata
        with safe_open(path, framework="pt") as file:
            names = [] if only_metadata else list(file.keys())
            metadata = json.loads((file.metadata() or {})[_METADATA])
            return {name: file.get_tensor(name) for name in names}, metadata
    except FileNotFoundError as error:
        raise UserError(f"no features {path}: check the path") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except UserError:
        raise
    except Exception as error:  # numpy raises many kinds, by what the file is instead
        raise UserError(f"{path} holds no features of vatt, or is damaged") from error


class WindowTable:
    """Vectors of the sliding windows of one file, collected batch by batch.

    Args:
        plan: Length and hop of the windows.
        duration_seconds: Length of the file.
    """

    def __init__(self, plan: WindowPlan, duration_seconds: float) -> None:
        self._plan = plan
        self._duration_seconds = duration_seconds
        self.starts = plan.sliding_starts(duration_seconds)
        self._num_windows = 0  # so far
        kinds = {"video": plan.video, "audio": plan.audio}
        self._coverage = {name: torch.zeros(len(self.starts)) for name in kinds if kinds[name]}
        self._arrays: dict[str, Tensor] = {}  # zeros for batches without the modality

    def batches(self, size: int) -> list[list[float]]:
        """Starts of all windows, in batches of `size`."""
        return [self.starts[first : first + size] for first in range(0, len(self.starts), size)]

    @property
    def is_complete(self) -> bool:
        """Whether all windows have been added."""
        return self._num_windows == len(self.starts)

    def add(self, clips: Sequence[Clip], arrays: dict[str, Tensor]) -> None:
        """Adds the next windows, with their vectors from `Embedder.embed_clips`."""
        rows = slice(self._num_windows, self._num_windows + len(clips))
        self._num_windows = rows.stop
        for name, values in arrays.items():
            if name not in self._arrays:
                self._arrays[name] = values.new_zeros(len(self.starts), *values.shape[1:])
            self._arrays[name][rows] = values
        for modality, shares in self._coverage.items():
            shares[rows] = torch.tensor([clip.coverage(modality) for clip in clips])

    def features(self, metadata: dict[str, str]) -> Features:
        """Features of the complete table."""
        start_seconds = torch.tensor(self.starts, dtype=torch.float64)
        ends = start_seconds + self._plan.window_seconds
        return Features(
            arrays=self._arrays,
            start_seconds=start_seconds,
            end_seconds=ends.clamp(max=self._duration_seconds),
            coverage=self._coverage,
            metadata=metadata,
        )
