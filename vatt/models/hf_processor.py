"""`VattProcessor`: our preprocessing as a processor of transformers."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from vatt.config.model import VATTConfig
from vatt.errors import UserError
from vatt.models.checkpoint import TOKENIZER
from vatt.models.hf_config import VattConfig
from vatt.preprocess.arrays import (
    Source,
    audio_media,
    clip_of_pictures,
    each_source,
    video_media,
)
from vatt.preprocess.tokenizer import Tokenizer
from vatt.preprocess.windows import plan_windows

INPUTS = {"video": "pixel_values_videos", "audio": "input_values", "text": "input_ids"}
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class VattProcessor(ProcessorMixin):
    """Inputs of `VattModel` from frames, waveforms, files and texts.

    `AutoProcessor.from_pretrained` loads one after `import vatt.hf`.

    Args:
        settings: Configuration of the model.
        tokenizer: Tokenizer that the model was trained with. None: texts are refused.
    """

    def __init__(self, settings: VATTConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = tokenizer

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Parts that transformers would load and save: none."""
        return []

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs of the model."""
        return [INPUTS[modality] for modality in self.settings.modalities]

    def __call__(
        self,
        images: None = None,
        text: str | Iterable[str] | None = None,
        videos: Source | Iterable[Source] | None = None,
        audio: Source | Iterable[Source] | None = None,
        *,
        frame_rate: float | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = "pt",
    ) -> Any:
        """Reads one window of each video and sound, as `num_windows=1` of `FeatureExtractor` does.

        Args:
            images: Not used: still images are `videos`.
            text: One text or several; longer ones than the model reads are cut.
            videos: One video or several: uint8 array or tensor `[T, H, W, 3]`, image `[H, W, 3]`,
                list of pictures, path, URL, bytes or binary file.
            audio: One sound or several: float array or tensor `[S]` or `[channels, S]` in [-1, 1],
                path, URL, bytes or binary file.
            frame_rate: Frames per second of arrays of pictures.
            sampling_rate: Hz of arrays of sound.
            return_tensors: "pt" for tensors, "np" for arrays of NumPy.

        Returns:
            `BatchFeature` with `pixel_values_videos` uint8 `[B, T, H, W, 3]`, `input_values`
            float32 `[B, S]` and `input_ids` int64 `[B, J]`, as far as given.

        Raises:
            UserError: there is no input, the model lacks the modality, an array is invalid or
                its rate is missing, or a text has no word.
            MediaError: a file cannot be read.

        Example:
            >>> processor(videos=frames, frame_rate=25, text=["a dog barks"])
        """
        if images is not None:
            raise UserError("a model of vatt has no images=: give still images as videos=")
        if return_tensors not in (None, "pt", "np"):
            raise UserError(f'return_tensors must be "pt" or "np", got {return_tensors!r}')
        rows: dict[str, Tensor] = {}
        if videos is not None:
            rows["video"] = self._read_videos(videos, frame_rate)
        if audio is not None:
            rows["audio"] = self._read_sounds(audio, sampling_rate)
        if text is not None:
            rows["text"] = self._read_texts(text)
        if not rows:
            raise UserError("nothing to read: give text=, videos= or audio=")
        values = {INPUTS[modality]: batch for modality, batch in rows.items()}
        if return_tensors == "np":
            return BatchFeature({name: batch.numpy() for name, batch in values.items()})
        return BatchFeature(values)

    def _read_videos(self, videos: Any, frame_rate: float | None) -> Tensor:
        sources = each_source(clip_of_pictures(videos, frame_rate), "video")
        return self._windows("video", (video_media(one, frame_rate) for one in sources))

    def _read_sounds(self, audio: Any, sampling_rate: int | None) -> Tensor:
        sources = list(each_source(audio, "audio"))
        if sampling_rate is None and any(isinstance(one, Tensor | np.ndarray) for one in sources):
            raise UserError("an array of sound needs sampling_rate=, its samples per second")
        return self._windows("audio", (audio_media(one, sampling_rate) for one in sources))

    def _windows(self, modality: str, media: Iterable[Any]) -> Tensor:
        """One window of each file or array, `[B, …]`."""
        plan = plan_windows(self.settings, [modality])
        clips = [next(plan.read_spread(one, [modality], 1)) for one in media]
        rows = [getattr(clip, modality) for clip in clips]
        if not rows:
            raise UserError(f"nothing to read: no {modality} was given")
        return torch.stack(rows)

    def _read_texts(self, text: str | Iterable[str]) -> Tensor:
        self.settings.check_modality("text")
        if self.tokenizer is None:
            raise UserError(f"this model came without a {TOKENIZER}: put its own into its folder")
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise UserError("nothing to read: no text was given")
        ids = self.tokenizer.encode(texts, self.settings.text.max_words)
        for one, row in zip(texts, ids, strict=True):
            if not bool(row.any()):
                raise UserError(f"text {one[:60]!r} holds no word: leave it out")
        return ids

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **options: Any) -> Self:
        """Loads the processor of a model.

        Args:
            source: Model folder, or `org/name` on the Hugging Face Hub.
            options: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only` and
                `subfolder`; others are ignored, as by transformers.

        Raises:
            OSError: there is no such model.
            UserError: its configuration or tokenizer is damaged.
        """
        options = {name: options[name] for name in HUB_OPTIONS if name in options}
        settings = VattConfig.from_pretrained(source, **options).settings
        file = cached_file(
            source, TOKENIZER, _raise_exceptions_for_missing_entries=False, **options
        )
        return cls(settings, None if file is None else Tokenizer.load(file))

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **options: Any
    ) -> list[str]:
        """Writes `tokenizer.json`, and `config.json` if the folder has none.

        Args:
            save_directory: Folder to write, created if missing.
            push_to_hub: Whether to upload it, too.
            options: Arguments of `push_to_hub`; `repo_id` is the name of the folder by default.

        Returns:
            Paths of the files.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config, tokenizer = folder / "config.json", folder / TOKENIZER
        if not config.exists():
            VattConfig(**self.settings.to_dict()).to_json_file(config)
        files = [str(config)]
        if self.tokenizer is not None:
            self.tokenizer.save(tokenizer)
            files.append(str(tokenizer))
        if push_to_hub:
            self.push_to_hub(options.pop("repo_id", folder.name), **options)
        return files

    def to_dict(self) -> dict[str, Any]:
        """Class and settings as plain values."""
        return {"processor_class": type(self).__name__, **self.settings.to_dict()}
