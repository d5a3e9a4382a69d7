"""Models of sentence-transformers: texts, images, sound and video, as the model has them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.config.geometry import AudioWindow, VideoWindow
from vatt.encoders.encoder import BOTH, PARTS, Encoder
from vatt.encoders.frames import FRAMES, encode_frames
from vatt.encoders.model_folder import settings_of
from vatt.encoders.sound_text import none_longer, whole_windows
from vatt.encoders.texts import count_tokens, most_tokens
from vatt.encoders.transformers_loading import (
    load_errors,
    load_fault,
    load_sentence_transformers,
    without_prints,
)
from vatt.encoders.two_towers import JOINT
from vatt.errors import CheckpointError, UserError
from vatt.models.checkpoint import sha256_of

# windows of models that limit neither the number of frames nor the length of sound
VIDEO = VideoWindow(num_frames=8, frame_rate=2.0)
SOUND_SECONDS = 10.0


class SentenceTransformerEncoder(Encoder):
    """Model of sentence-transformers with one space.

    Texts are encoded as queries, media as documents, with the prompts that the model brings for
    each. Video is encoded as such if the model takes it, else as the mean of the unit vectors of
    its frames. The library does not separate backbone and head: the features of the backbone are
    the vectors themselves. Picture and sound together are the sum of their unit vectors.

    Args:
        model: `sentence_transformers.SentenceTransformer`.
        settings: Description of all that the vectors depend on beside the weights.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products; weights stay float32.

    Raises:
        UserError: the device or dtype does not exist, or the model takes nothing that vatt reads.
    """

    model: Any

    def __init__(
        self,
        model: Any,
        settings: bytes = b"",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        super().__init__(model, device, dtype)
        self._settings = settings
        self._takes_video = model.supports("video")
        takes = {
            "video": self._takes_video or model.supports("image"),
            "audio": model.supports("audio"),
            "text": model.supports("text"),
        }
        self.modalities = tuple(name for name, is_taken in takes.items() if is_taken)
        if not self.modalities:
            has = ", ".join(map(str, model.modalities))
            raise UserError(f"this model takes {has}, not video, images, audio or text alone")
        self.video = (VIDEO if self._takes_video else FRAMES) if takes["video"] else None
        self.audio = _sound_windows(model) if takes["audio"] else None
        self.max_tokens = most_tokens(getattr(model, "max_seq_length", None))
        model.register_forward_pre_hook(_tell_none_longer)
        self._width: int | None = model.get_embedding_dimension()

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str | torch.device,
        dtype: str | torch.dtype,
        trust_remote_code: bool = False,
    ) -> "SentenceTransformerEncoder":
        """Loads a model folder.

        Raises:
            CheckpointError: it is damaged, or wants to run code of its own.
            UserError: sentence-transformers is not installed.
        """
        library = load_sentence_transformers()
        try:
            with without_prints():
                model = library.SentenceTransformer(
                    str(folder),
                    device="cpu",
                    trust_remote_code=trust_remote_code,
                    local_files_only=True,
                    model_kwargs={"dtype": torch.float32},  # by itself it takes that of the file
                )
        except load_errors() as error:
            wants_trust = "trust_remote_code" in str(error)
            fault = remote_code(str(folder)) if wants_trust else load_fault(str(folder), error)
            raise CheckpointError(fault) from error
        return cls(model.float(), settings_of(folder), device, dtype)

    def spaces(self, modality: str) -> tuple[str, ...]:
        """See `Encoder`."""
        parts = PARTS.get(modality, (modality,))
        return (JOINT,) if {*parts} <= {*self.modalities} else ()

    def width(self, modality: str, space: str | None) -> int:
        """See `Encoder`."""
        if self._width is None:  # the library does not know it of every module
            if "text" not in self.modalities:
                raise UserError("this model does not say how long its vectors are")
            self._width = int(self._encode_rows("text", ["width"]).shape[1])
        return self._width

    def count_tokens(self, text: str) -> int:
        """See `Encoder`."""
        prompt = self.model.prompts.get("query") or ""
        return count_tokens(self.model.tokenizer, text, prompt)

    def encode(
        self, modality: str, rows: Sequence[Any], spaces: Sequence[str | None]
    ) -> dict[str | None, Tensor]:
        """See `Encoder`."""
        if modality == BOTH:
            video, audio = zip(*rows, strict=True)
            one = self.encode("video", video, [JOINT])[JOINT]
            other = self.encode("audio", audio, [JOINT])[JOINT]
            vectors = F.normalize(one, dim=-1) + F.normalize(other, dim=-1)
        elif modality == "video" and not self._takes_video:
            vectors = encode_frames(rows, self._encode_pictures)[JOINT]
        else:
            vectors = self._encode_rows(modality, [self._input(modality, row) for row in rows])
        return dict.fromkeys(spaces, vectors)

    def digest(self) -> str:
        """See `Encoder`."""
        return sha256_of(self._settings, self.model.state_dict())

    def _encode_rows(self, modality: str, inputs: list[Any]) -> Tensor:
        """Vectors of inputs of the library, float32 `[N, D]` on the device."""
        encode = self.model.encode_query if modality == "text" else self.model.encode_document
        # as it is used, the frames of the window are all to be read
        kept = {"processing_kwargs": {"video": {"do_sample_frames": False}}}
        with self.autocast():
            vectors: Tensor = encode(
                inputs,
                batch_size=len(inputs),
                convert_to_tensor=True,
                show_progress_bar=False,
                device=self.device,
                **(kept if modality == "video" and self._takes_video else {}),
            )
        return vectors.float()

    def _encode_pictures(self, windows: list[Tensor]) -> dict[str | None, Tensor]:
        from PIL import Image

        pictures = [Image.fromarray(frame.numpy()) for frames in windows for frame in frames]
        return {JOINT: self._encode_rows("video", pictures)}

    def _input(self, modality: str, row: Any) -> Any:
        """Input of the library."""
        if modality == "text":
            return row
        if modality == "audio":
            assert self.audio is not None
            return {"array": row.numpy(), "sampling_rate": self.audio.sample_rate}
        assert self.video is not None
        seen = {
            "total_num_frames": len(row),
            "fps": self.video.frame_rate,
            "duration": len(row) / self.video.frame_rate,
            "frames_indices": list(range(len(row))),
        }
        return {"array": row.numpy(), "video_metadata": seen}


def remote_code(source: str) -> str:
    """Message about a model that wants to run code of its own."""
    return (
        f"{source} wants to run Python code that comes with it: read that code, and if you trust "
        "it, load the model with FeatureExtractor.from_pretrained(…, trust_remote_code=True)"
    )


def _sound_windows(model: Any) -> AudioWindow:
    """Windows of sound at the rate of a model's processor, and as long as it takes at once."""
    processor = model.processor
    extractor = getattr(processor, "feature_extractor", processor)
    sample_rate = getattr(extractor, "sampling_rate", None)
    if sample_rate is None:
        raise UserError("the processor of this model does not say at which rate it takes sound")
    if hasattr(extractor, "nb_max_samples"):  # CLAP's
        return whole_windows(extractor)
    most = getattr(extractor, "chunk_length", None)  # seconds, of Whisper's
    seconds = min(SOUND_SECONDS, most) if isinstance(most, int | float) else SOUND_SECONDS
    return AudioWindow(
        num_samples=round(seconds * sample_rate), sample_rate=sample_rate, is_padded=False
    )


def _tell_none_longer(model: Any, arguments: tuple[Any, ...]) -> None:
    """Makes CLAP's vectors repeatable; see `none_longer`."""
    features = arguments[0]
    if "is_longer" in features:
        features["is_longer"] = none_longer(features).to(features["is_longer"].device)
