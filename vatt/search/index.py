"""Search over extracted features: `Index`, from a question to segments of media."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vatt.errors import UserError
from vatt.features.media_places import MEDIA, OFFSET, SIZE, find_described
from vatt.media.source import FileWindow
from vatt.media.streams import TIME_TOLERANCE_SECONDS
from vatt.preprocess.arrays import Source
from vatt.search.approximate import approximate_rows, open_approximate
from vatt.search.build import IndexOptions, IndexReport, build_index
from vatt.search.exact import nearest_rows, unit_rows
from vatt.search.files import SearchFiles, Window
from vatt.search.query import Modality, Query, choose_array

if TYPE_CHECKING:
    from vatt.features.extractor import FeatureExtractor

Distinct = Literal["place", "file", "window"]
FETCH_MORE = 4  # rows looked at for each hit: neighbours fall away


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A segment that was found.

    Args:
        source: Name of the file, as `vatt extract` called it.
        file: Where it lay then, a path or address, of a sample of a shard that of the tar; "" where
            the features do not say.
        offset: Of a sample's first byte in its tar, else None.
        size: Of a sample in bytes, else None.
        start_seconds: From the file's start.
        end_seconds: Not after the file's end.
        score: Cosine with the query, in [-1, 1].
        row: In the array that was searched.
    """

    source: str
    file: str
    offset: int | None
    size: int | None
    start_seconds: float
    end_seconds: float
    score: float
    row: int


class Index:
    """Windows of many files, to be searched by words, sounds and videos.

    Args:
        path: Folder that `vatt index` made.
        model: Folder, checkpoint or name on the Hub; None: the one that made the features.
        media: Folder in which the media lie now; None: where they were.
        device: As of `FeatureExtractor`.

    Raises:
        UserError: no index, a damaged one, or one of another version.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | None = None,
        media: str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> None:
        self._files = SearchFiles(Path(path))
        said = self._files.said
        self._model, self._device = model or said["model"], device
        folder = said["media_folder"] if media is None else media
        self._media_folder = None if folder is None else Path(folder)
        self._extractor: FeatureExtractor | None = None
        self._approximate: dict[str, Any] = {}

    @classmethod
    def build(
        cls,
        features: str | os.PathLike[str],
        path: str | os.PathLike[str],
        options: IndexOptions | None = None,
    ) -> tuple[Self, IndexReport]:
        """Makes an index of what `vatt extract` wrote; one that is there is replaced at the end.

        Raises:
            UserError: features that do not go together, or a place that holds something else.
        """
        report = build_index(Path(features), Path(path), options or IndexOptions())
        return cls(path), report

    def __len__(self) -> int:
        """Number of windows."""
        return self._files.num_windows

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of what can be searched, such as `video_vt` and `audio_va`."""
        return tuple(self._files.arrays)

    @property
    def extractor(self) -> "FeatureExtractor":
        """The model that made the features.

        Raises:
            UserError: it is another one, or the features do not say which.
            CheckpointError: there is no model.
        """
        if self._extractor is None:
            from vatt.features.extractor import FeatureExtractor
            from vatt.models.checkpoint import weights_digest

            if not self._model:
                raise UserError("the features do not say which model made them: give --model", 2)
            made = FeatureExtractor.from_pretrained(self._model, device=self._device)
            if weights_digest(made.model) != self._files.said["fingerprint"]:
                raise UserError(
                    f"{self._model} is not the model that made the features of {self._files.path}: "
                    "give that one by --model, or extract and index anew",
                    2,
                )
            self._extractor = made
        return self._extractor

    def search(
        self,
        vector: ArrayLike | None = None,
        *,
        text: str | None = None,
        audio: Source | None = None,
        video: Source | None = None,
        k: int = 5,
        modality: Literal["video", "audio"] | None = None,
        space: str | None = None,
        distinct: Distinct = "place",
        exact: bool = False,
    ) -> list[Hit]:
        """The segments nearest to a query.

        Args:
            vector: `[D]`, of any length, to be compared with the array of `modality` and `space`,
                or with the only one.
            text: Words.
            audio: A sound, or a video's.
            video: A video's picture, or an image.
            k: How many; fewer where the index holds no more.
            modality: What is searched; None: pictures before sound.
            space: In which common space, "none" for the backbone; None: the first that both share.
            distinct: "place": of windows of a file that overlap, the best; "file": the best of each
                file; "window": all.
            exact: Whether an approximate index is passed over.

        Returns:
            The highest score first; ties by row.

        Raises:
            UserError: a query that cannot be read or compared with what the index has.
            UserError: not one query, or `k` below 1.
        """
        given: dict[Modality, Any] = {"text": text, "audio": audio, "video": video}
        queries = [Query(name, one) for name, one in given.items() if one is not None]
        if len(queries) + (vector is not None) != 1:
            raise UserError("give one query: vector, text=, audio= or video=")
        if vector is not None:
            return self.near(vector, self.array_of(modality, space), k, distinct, exact=exact)
        name, values = self.encode(queries[0], modality, space)
        return self.near(values, name, k, distinct, exact=exact)

    def encode(
        self, query: Query, modality: str | None = None, space: str | None = None
    ) -> tuple[str, NDArray[np.float32]]:
        """The array in which a query is looked for, and its vector, float32 `[D]`."""
        spaces = self.extractor.spaces(query.modality)
        name, shared = choose_array(self._files.arrays, query.modality, spaces, modality, space)
        return name, query.encode(self.extractor, shared).numpy()

    def array_of(self, modality: str | None, space: str | None) -> str:
        """The only array of a modality and space.

        Raises:
            UserError: there is none, or several.
        """
        found = [
            name
            for name, said in self._files.arrays.items()
            if modality in (None, said["modality"]) and space in (None, said["space"])
        ]
        if len(found) != 1:
            raise UserError(
                f"a vector is compared with one array, the index has {', '.join(self.arrays)}: "
                "choose one by modality and space",
                2,
            )
        return found[0]

    def near(
        self,
        vector: ArrayLike,
        name: str,
        k: int = 5,
        distinct: Distinct = "place",
        *,
        exact: bool = False,
    ) -> list[Hit]:
        """The segments nearest to a vector `[D]` in one array; see `search`."""
        if k < 1:
            raise UserError(f"k must be at least 1, got {k}")
        matrix = self._files.matrix(name)
        query = _unit(vector, matrix.shape[1])
        fetched = k if distinct == "window" else FETCH_MORE * k
        while True:
            fetched = min(fetched, len(matrix))
            scores, rows = self._nearest(name, matrix, query, fetched, exact)
            hits = self._distinct(name, rows, scores, distinct, k)
            few = len(rows) < fetched  # of an approximate search, which has no more
            all_files = distinct == "file" and len(hits) == self._files.num_sources
            if len(hits) >= k or fetched == len(matrix) or few or all_files:
                return hits
            fetched *= FETCH_MORE

    def is_approximate(self, name: str) -> bool:
        """Whether an array is searched approximately, unless `exact` is asked for."""
        return self._files.arrays[name]["approximate"] is not None

    def media(self, hit: Hit) -> str | FileWindow:
        """What to read a hit's file from: a path, a URL, or bytes of a tar shard.

        Raises:
            MediaError: it is not there any more.
        """
        said = {MEDIA: hit.file}
        if hit.offset is not None:
            said |= {OFFSET: str(hit.offset), SIZE: str(hit.size)}
        return find_described(said, hit.source, self._media_folder)

    def _nearest(
        self,
        name: str,
        matrix: NDArray[np.float32],
        query: NDArray[np.float32],
        k: int,
        exact: bool,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        said = self._files.arrays[name]["approximate"]
        if said is None or exact:
            return nearest_rows(matrix, query[None], k)[0]
        if name not in self._approximate:
            self._approximate[name] = open_approximate(self._files.faiss_path(name), said)
        return approximate_rows(self._approximate[name], matrix, query, k, said["groups"])

    def _distinct(
        self,
        name: str,
        rows: NDArray[np.int64],
        scores: NDArray[np.float64],
        distinct: Distinct,
        k: int,
    ) -> list[Hit]:
        """The first `k` of rows that come best first, without those that say the same again."""
        kept: dict[int, list[Window]] = {}
        hits: list[Hit] = []
        windows = self._files.windows(name, rows)
        for row, score, window in zip(rows.tolist(), scores.tolist(), windows, strict=True):
            before = kept.setdefault(window.source, [])
            if distinct == "file" and before:
                continue
            if distinct == "place" and any(_overlap(window, other) for other in before):
                continue
            before.append(window)
            hits.append(self._hit(row, score, window))
            if len(hits) == k:
                break
        return hits

    def _hit(self, row: int, score: float, window: Window) -> Hit:
        said = self._files.source(window.source)
        return Hit(
            source=said["source"],
            file=said.get(MEDIA, ""),
            offset=int(said[OFFSET]) if OFFSET in said else None,
            size=int(said[SIZE]) if SIZE in said else None,
            start_seconds=window.start_seconds,
            end_seconds=window.end_seconds,
            score=score,
            row=row,
        )


def _overlap(first: Window, second: Window) -> bool:
    """Whether two windows of a file share more time than rounding makes."""
    start = max(first.start_seconds, second.start_seconds)
    end = min(first.end_seconds, second.end_seconds)
    return end - start > TIME_TOLERANCE_SECONDS


def _unit(vector: ArrayLike, width: int) -> NDArray[np.float32]:
    """A query vector as it is compared, float32 `[D]` of unit length.

    Raises:
        UserError: another shape, or no direction.
    """
    values = np.asarray(vector, dtype=np.float32)
    if values.shape != (width,):
        raise UserError(f"a query vector is float [{width}], got {list(values.shape)}")
    if not np.isfinite(values).all() or not values.any():
        raise UserError("a query vector must be finite and not zero")
    return unit_rows(values[None])[0]
