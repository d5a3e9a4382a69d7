"""Search over extracted features: `Index`, from a query to segments of media."""

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vatt.config.options import Backend, IndexOptions
from vatt.config.spaces import MediaModality
from vatt.errors import UserError
from vatt.features.media_places import MEDIA, OFFSET, SIZE
from vatt.media.source import FileRange
from vatt.search.approximate import approximate_rows, open_approximate
from vatt.search.exact import nearest_rows, unit_rows
from vatt.search.files import SearchFiles
from vatt.search.hits import MOST_MORE, Hit, Hits, media_of
from vatt.search.query import Modality, Query, choose_array
from vatt.search.scale import Scale, score_scale

if TYPE_CHECKING:  # torch and PyAV, which the search for a vector does not need
    from vatt.features.extractor import FeatureExtractor
    from vatt.preprocess.arrays import Source
    from vatt.search.build import IndexSummary

Distinct = Literal["place", "file", "window"]
FETCH_MORE = 4  # rows fetched per hit, since neighbours are dropped
ROUNDING_SECONDS = 1e-6  # windows that share less do not overlap


class Index:
    """Index of windows of many files, searched by text, sound or video.

    Args:
        path: Folder that `vatt index` wrote.
        model: Folder, checkpoint or name on the Hub; None: the one that made the features.
        media: Folder of the media, if they were moved; None: where `vatt extract` read them.
        device: Device of the model: "auto", "cpu", "cuda", "mps".
        backend: What runs the model: "torch", or "onnx" for a folder of `vatt export`.

    Raises:
        UserError: there is no index, it is damaged, or it has another version.

    Example:
        >>> index = Index("index")  # doctest: +SKIP
        >>> for hit in index.search("a dog barks", k=3):  # doctest: +SKIP
        ...     print(hit.source, hit.start_seconds, hit.score)
        >>> index.search("a dog barks").to_pandas()  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | None = None,
        media: str | os.PathLike[str] | None = None,
        device: str = "auto",
        backend: Backend = "torch",
    ) -> None:
        self._files = SearchFiles(Path(path))
        content = self._files.content
        self._model, self._device = model or content["model"], device
        self._backend = backend
        folder = content["media_folder"] if media is None else media
        self._media_folder = None if folder is None else Path(folder)
        self._approximate: dict[str, Any] = {}

    @classmethod
    def build(
        cls,
        features: str | os.PathLike[str],
        path: str | os.PathLike[str],
        options: IndexOptions | None = None,
    ) -> "tuple[Self, IndexSummary]":
        """Builds an index of features; an earlier index is replaced at the end.

        Args:
            features: Folder that `vatt extract` wrote.
            path: Folder of the index.
            options: Content of the index; None: all vectors of the features.

        Raises:
            UserError: the features do not belong together, or the folder has other contents.
        """
        from vatt.search.build import build_index

        summary = build_index(Path(features), Path(path), options or IndexOptions())
        return cls(path), summary

    def __repr__(self) -> str:
        """Folder, number of windows and files, and arrays."""
        files = self._files
        return (
            f"Index({str(files.path)!r}, {len(self)} windows of {self.num_files} files, "
            f"{', '.join(self.arrays)})"
        )

    def __len__(self) -> int:
        """Number of windows."""
        return self._files.num_windows

    @property
    def num_files(self) -> int:
        """Number of files."""
        return self._files.num_sources

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that can be searched, such as `video_vt` and `audio_va`."""
        return tuple(self._files.arrays)

    @functools.cached_property
    def extractor(self) -> "FeatureExtractor":
        """Feature extractor with the model that made the features.

        Raises:
            UserError: the model is another one, or the features do not name their model.
            CheckpointError: the model does not exist or cannot be loaded.
        """
        from vatt.features.extractor import FeatureExtractor

        if not self._model:
            raise UserError("the features do not say which model made them: give --model", 2)
        extractor = FeatureExtractor.from_pretrained(
            self._model, device=self._device, backend=self._backend
        )
        if extractor.encoder.digest() != self._files.content["fingerprint"]:
            raise UserError(
                f"{self._model} is not the model that made the features of {self._files.path}: "
                "give that one by --model, or extract and index anew",
                2,
            )
        return extractor

    def search(
        self,
        query: ArrayLike | str | None = None,
        *,
        vector: ArrayLike | None = None,
        text: str | None = None,
        audio: "Source | None" = None,
        video: "Source | None" = None,
        k: int = 5,
        modality: MediaModality | None = None,
        space: str | None = None,
        distinct: Distinct = "place",
        exact: bool = False,
    ) -> Hits:
        """Finds the windows nearest to one query.

        Args:
            query: A text, or a vector.
            vector: Vector `[D]` of any length, compared with the array of `modality` and `space`,
                or with the only one.
            text: A text.
            audio: A sound, or a video whose sound is used.
            video: A video whose picture is used, or an image.
            k: Number of hits; all if there are fewer.
            modality: Modality to search; None: video before audio.
            space: Common space to search in, "none" for the backbone; None: the first that both
                share.
            distinct: "place": only the best of a file's windows that overlap; "file": only the
                best of each file; "window": all.
            exact: Whether to compare all rows even if the index is approximate.

        Returns:
            Hits, highest score first; ties by row. A list, which a notebook shows with players.

        Raises:
            UserError: there is not exactly one query, it cannot be read or compared with the index,
                or `k` is below 1.
        """
        if isinstance(query, str) and text is None:
            query, text = None, query
        elif query is not None and vector is None:
            query, vector = None, query
        sources: dict[Modality, Any] = {"text": text, "audio": audio, "video": video}
        queries = [Query(name, source) for name, source in sources.items() if source is not None]
        if len(queries) + (vector is not None) + (query is not None) != 1:
            raise UserError("give one query: a text, a vector, audio= or video=")
        if vector is not None:
            return self.near(vector, self.array_of(modality, space), k, distinct, exact=exact)
        name, values = self.encode(queries[0], modality, space)
        return self.near(values, name, k, distinct, exact=exact)

    def encode(
        self, query: Query, modality: str | None = None, space: str | None = None
    ) -> tuple[str, NDArray[np.float32]]:
        """Array to search for a query, and the vector of the query, float32 `[D]`."""
        spaces = self.extractor.spaces(query.modality)
        name, shared = choose_array(self._files.arrays, query.modality, spaces, modality, space)
        return name, query.encode(self.extractor, shared).numpy()

    def array_of(self, modality: str | None, space: str | None) -> str:
        """The only array of a modality and space.

        Raises:
            UserError: there is none, or several.
        """
        names = [
            name
            for name, array in self._files.arrays.items()
            if modality in (None, array["modality"]) and space in (None, array["space"])
        ]
        if len(names) != 1:
            raise UserError(
                f"a vector is compared with one array, the index has {', '.join(self.arrays)}: "
                "choose one by modality and space",
                2,
            )
        return names[0]

    def near(
        self,
        vector: ArrayLike,
        name: str,
        k: int = 5,
        distinct: Distinct = "place",
        *,
        exact: bool = False,
    ) -> Hits:
        """Windows nearest to a vector `[D]` in one array; see `search`."""
        if k < 1:
            raise UserError(f"k must be at least 1, got {k}")
        matrix = self._files.matrix(name)
        query = _unit(vector, matrix.shape[1])
        exact = exact or not self.is_approximate(name)
        if not exact and name not in self._approximate:
            self._approximate[name] = open_approximate(self._files.faiss_path(name), matrix)
        fetched = k if distinct == "window" else FETCH_MORE * k
        while True:
            fetched = min(fetched, len(matrix))
            if exact:
                scores, rows = nearest_rows(matrix, query[None], fetched)[0]
            else:
                groups = self._files.arrays[name]["approximate"]["groups"]
                near = self._approximate[name]
                scores, rows = approximate_rows(near, matrix, query, fetched, groups)
            hits = self._hits(name, rows, scores, distinct, k)
            few = len(rows) < fetched  # an approximate search finds no more
            all_files = distinct == "file" and len(hits) == self.num_files
            if len(hits) >= k or fetched == len(matrix) or few or all_files:
                return hits
            fetched *= FETCH_MORE

    def scale(self, vector: ArrayLike, name: str) -> Scale | None:
        """Scale of the scores of a vector `[D]` in one array; None if the array is too small."""
        matrix = self._files.matrix(name)
        return score_scale(matrix, _unit(vector, matrix.shape[1]))

    def caution(self) -> str | None:
        """Warning about what a search with this model is worth; None if there is none."""
        return self.extractor.encoder.caution(self._model)

    def is_approximate(self, name: str) -> bool:
        """Whether an array is searched approximately, unless `exact` is set."""
        return self._files.arrays[name]["approximate"] is not None

    def media(self, hit: Hit) -> str | FileRange:
        """Media of a hit: a path, a URL, or bytes of a tar shard.

        Raises:
            MediaError: the media are missing.
        """
        return media_of(hit, self._media_folder)

    def _hits(
        self,
        name: str,
        rows: NDArray[np.int64],
        scores: NDArray[np.float64],
        distinct: Distinct,
        k: int,
    ) -> Hits:
        """The first `k` hits of rows, best first, without repetitions."""
        better: dict[int, list[tuple[float, float, float]]] = {}  # moments by file: times, score
        hits: list[tuple[int, Hit]] = []
        windows = self._files.windows(name, rows)
        for row, score, (number, start, end) in zip(
            rows.tolist(), scores.tolist(), windows, strict=True
        ):
            others = better.setdefault(number, [])
            if distinct == "file" and len(others) > MOST_MORE:
                continue
            shared = (min(end, last) - max(start, first) for first, last, _ in others)
            if distinct != "window" and any(seconds > ROUNDING_SECONDS for seconds in shared):
                continue
            others.append((start, end, score))
            if distinct == "file" and len(others) > 1:
                continue
            source = self._files.source(number)
            hit = Hit(
                source=source["source"],
                file=source.get(MEDIA, ""),
                offset=int(source[OFFSET]) if OFFSET in source else None,
                size=int(source[SIZE]) if SIZE in source else None,
                start_seconds=start,
                end_seconds=end,
                score=score,
                row=row,
            )
            hits.append((number, hit))
            if len(hits) == k:
                break
        found = Hits((hit for _, hit in hits), self._media_folder)
        if distinct == "file":
            for place, (number, hit) in enumerate(hits):
                num_good = sum(score >= found[-1].score for *_, score in better[number])
                found[place] = replace(hit, num_more=num_good - 1)
        return found


def _unit(vector: ArrayLike, width: int) -> NDArray[np.float32]:
    """A query vector scaled to unit length, float32 `[D]`.

    Raises:
        UserError: the vector has another shape, or no direction.
    """
    values = np.asarray(vector, dtype=np.float32)
    if values.shape != (width,):
        raise UserError(f"a query vector is float [{width}], got {list(values.shape)}")
    if not np.isfinite(values).all() or not values.any():
        raise UserError("a query vector must be finite and not zero")
    return unit_rows(values[None])[0]
