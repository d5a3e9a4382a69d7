"""Fixtures shared by the tests of this folder: small models of others, saved once, and media."""

from collections.abc import Callable
from pathlib import Path

import foreign_models
import pytest
from media_files import Kind, make_file

SaveModel = Callable[[str], Path]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> SaveModel:
    """Function from a name such as `clip` to the folder of that small model; do not change it."""
    folder = tmp_path_factory.mktemp("models")

    def save(name: str) -> Path:
        foreign_models.skip_without("transformers", "PIL", "sentence_transformers")
        path = folder / name
        if not path.exists():
            getattr(foreign_models, f"save_{name}")(path)
        return path

    return save


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 10 s and 96 × 72 pixels with sound."""
    path = tmp_path_factory.mktemp("media") / "video.mp4"
    make_file(path, Kind(video_seconds=10.0, audio_seconds=10.0))
    return path
