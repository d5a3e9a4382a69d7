"""`PeAvEncoder`: Perception Encoder Audio-Visual (PE-AV) of Meta, in the form of transformers.

Source: Vyas et al., "Pushing the Frontier of Audiovisual Perception with Large-Scale Multimodal
Correspondence Learning", arXiv 2512.19687; `transformers.models.pe_audio_video`.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vatt.config.geometry import AudioWindow, VideoWindow
from vatt.encoders.encoder import BOTH, Encoder
from vatt.encoders.model_folder import CONFIG
from vatt.encoders.texts import count_tokens, most_tokens
from vatt.encoders.transformers_loading import load_timm
from vatt.encoders.two_towers import load_parts
from vatt.errors import CheckpointError, UserError
from vatt.models.checkpoint import sha256_of
from vatt.system.files import read_json

# class, and parts of its processor, by `model_type` of config.json
CLASSES = {
    "pe_audio_video": ("PeAudioVideoModel", "video_processor", "feature_extractor"),
    "pe_audio": ("PeAudioModel", "feature_extractor"),
    "pe_video": ("PeVideoModel", "video_processor"),
}
WINDOW_SECONDS = 10.0  # length of the clips of AudioCaps and VGGSound, on which it was evaluated
# Models without a number of frames of their own read each frame they are given and were trained at
# 30 per second. mteb gives them 2 per second, with a fifteenth of the work and memory.
FRAME_RATE = 2.0
MAX_TEXT_TOKENS = 512  # of Meta's transform and of mteb's; the tokenizer itself allows thousands
FRAMES_PER_PASS = 128  # through the picture tower; those of a large model take some 3 GB


class PeAvEncoder(Encoder):
    """PE-AV, or its part for sound and text or for video and text, with its own processor.

    Frames, sound and texts are prepared by the processor of the model: frames of any size become
    squares, sound is lengthened to whole tokens by reflection. Both enter a vector of their own, of
    the model's third encoder, as `video_audio`.

    Texts are pooled before the last norm of the text tower, as in Meta's code and in mteb; the
    `forward` of transformers from 5.0 pools them behind it unless the configuration of the text
    tower has `tie_last_hidden_states` false.

    Args:
        model: `PeAudioVideoModel`, `PeAudioModel` or `PeVideoModel` of transformers.
        processor: Its processor.
        settings: Description of all that the vectors depend on beside the weights.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products; weights and heads stay float32.
        window_seconds: Length of a window where the caller names none.
        frame_rate: Frames per second, for models that read any number of frames.

    Raises:
        UserError: the device or dtype does not exist, or a time is not positive.
    """

    model: Any
    video: VideoWindow | None
    audio: AudioWindow | None

    def __init__(
        self,
        model: Any,
        processor: Any,
        settings: bytes = b"",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        *,
        window_seconds: float = WINDOW_SECONDS,
        frame_rate: float = FRAME_RATE,
    ) -> None:
        super().__init__(model, device, dtype)
        self.processor, self._settings = processor, settings
        self._towers = _towers(model)
        self.modalities = (*(name for name in self._towers if name != BOTH), "text")
        self._heads = _heads(model)
        self.max_tokens = most_tokens(MAX_TEXT_TOKENS, processor.tokenizer.model_max_length)
        self.video = self.audio = None
        if "video" in self.modalities:
            self.video = _video_window(processor.video_processor, window_seconds, frame_rate)
        if "audio" in self.modalities:
            self.audio = _audio_window(processor.feature_extractor, self._towers, window_seconds)

    @classmethod
    def load(
        cls,
        folder: Path,
        model_type: str,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        **times: float,
    ) -> "PeAvEncoder":
        """Loads a model of one of the `CLASSES`.

        Args:
            folder: Model folder.
            model_type: That of its configuration.
            device: "auto": CUDA, else MPS, else the CPU.
            dtype: Precision of the encoders' products. "auto": bfloat16 on CUDA, else float32.
            times: `window_seconds` and `frame_rate`; see the class.

        Raises:
            CheckpointError: a file is missing or damaged, or the model has no vectors of windows.
            UserError: a package is not installed or does not fit, or a time is not positive.
        """
        class_name, *parts = CLASSES[model_type]
        if "PeAudioFrameLevelModel" in (read_json(folder / CONFIG).get("architectures") or ()):
            raise CheckpointError(
                f"{folder} has a vector for each 40 ms of sound and none for a window: choose one "
                "of the models pe-av"
            )
        if "video_processor" in parts:
            load_timm()  # its picture tower
        try:
            model, processor, settings = load_parts(folder, class_name, *parts)
        except AttributeError as error:
            raise UserError(
                "PE-AV of the transformers installed does not fit the timm installed "
                f'({error}): pip install "vatt[pe-av]"'
            ) from error
        return cls(model, processor, settings, device, dtype, **times)

    def spaces(self, modality: str) -> tuple[str, ...]:
        """See `Encoder`: of video and audio `va`, with text `vt` and `at`, of all three `avt`."""
        return tuple(space for name, space in self._heads if name == modality)

    def width(self, modality: str, space: str | None) -> int:
        """See `Encoder`."""
        if space is not None:
            return int(self._heads[modality, space].proj.out_features)
        tower = self.model.text_model if modality == "text" else self._towers[modality]
        return int(tower.config.hidden_size)

    def count_tokens(self, text: str) -> int:
        """See `Encoder`."""
        return count_tokens(self.processor.tokenizer, text)

    def encode(
        self, modality: str, rows: Sequence[Any], spaces: Sequence[str | None]
    ) -> dict[str | None, Tensor]:
        """See `Encoder`. Windows of unequal length pass one after the other, without padding."""
        passes = _passes(modality, rows)
        parts = [self._pooled(modality, [rows[place] for place in one]) for one in passes]
        places = torch.tensor([place for one in passes for place in one], device=self.device)
        pooled = torch.cat(parts).float()[places.argsort()]
        vectors: dict[str | None, Tensor] = {None: pooled}
        for space in spaces:
            if space is not None:
                vectors[space] = self._heads[modality, space](pooled)
        return {space: vectors[space] for space in spaces}

    def digest(self) -> str:
        """See `Encoder`: of weights, files of settings and frame rate."""
        # window lengths are stored beside vectors, but not these
        rate = None if self.video is None or self.video.has_fixed_count else self.video.frame_rate
        settings = self._settings + f"{rate} {self.max_tokens}".encode()
        # the towers share weights, which state_dict has under several names
        return sha256_of(settings, dict(self.model.named_parameters()))

    def _pooled(self, modality: str, rows: Sequence[Any]) -> Tensor:
        """Pooled output of an encoder, `[N, D]`."""
        if modality == "text":
            return self._pooled_texts(rows)
        inputs: dict[str, Tensor] = {}
        if modality in ("video", BOTH):
            inputs |= self._frames([row[0] for row in rows] if modality == BOTH else rows)
        if modality in ("audio", BOTH):
            inputs |= self._sound([row[1] for row in rows] if modality == BOTH else rows)
        with self.autocast(), _pictures_in_parts(self.model):
            pooled: Tensor = self._towers[modality](**inputs).pooler_output
        return pooled

    def _pooled_texts(self, texts: Sequence[str]) -> Tensor:
        """Output of the text tower for the first token, before the last norm."""
        inputs = self.processor.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        wanted = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with self.autocast():
            return before_last_norm(self.model.text_model, **self._moved(wanted))[:, 0]

    def _frames(self, windows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Frames as the model takes them; scaled on a CUDA device if there is one."""
        place = self.device if self.device.type == "cuda" else "cpu"
        prepared = self.processor.video_processor(
            [frames.movedim(-1, 1).to(place) for frames in windows],
            do_sample_frames=False,  # a window has its frames already
            input_data_format="channels_first",
            return_tensors="pt",
        )
        return self._moved(prepared)

    def _sound(self, windows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Sound as the model takes it, float `[N, 1, S]`."""
        read = self.processor.feature_extractor
        rows = [sound.float().cpu().numpy() for sound in windows]
        return self._moved(read(rows, sampling_rate=read.sampling_rate, return_tensors="pt"))

    def _moved(self, prepared: Any) -> dict[str, Tensor]:
        return {name: value.to(self.device) for name, value in prepared.items()}


def before_last_norm(text_model: Any, **inputs: Tensor | None) -> Tensor:
    """Tokens of a text tower before its last norm, float `[N, J, D]`; behind its end without one.

    Args:
        text_model: Text tower of transformers, such as ModernBERT.
        inputs: Its inputs.
    """
    hidden: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        if (norm := getattr(text_model, "final_norm", None)) is not None:  # of ModernBERT
            hook = norm.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
            stack.callback(hook.remove)
        output = text_model(**inputs)
    last: Tensor = hidden[0] if hidden else output.last_hidden_state
    return last


def _video_window(processor: Any, window_seconds: float, frame_rate: float) -> VideoWindow:
    """Window of a model: its number of frames, evenly spread, or frames at a rate."""
    if processor.do_sample_frames and processor.num_frames:
        count = int(processor.num_frames)
        return VideoWindow(
            num_frames=count,
            frame_rate=count / window_seconds,
            has_fixed_count=True,
            is_padded=False,
        )
    rate = float(processor.fps or frame_rate)
    return VideoWindow(num_frames=1, frame_rate=rate, is_padded=False).of_length(window_seconds)


def _audio_window(extractor: Any, towers: dict[str, Any], window_seconds: float) -> AudioWindow:
    """Window of a model, at most as long as its table of positions, of which one is no sound."""
    rate = int(extractor.sampling_rate)
    num_positions = int(towers["audio"].config.max_position_embeddings) - 1
    return AudioWindow(
        num_samples=round(window_seconds * rate),
        sample_rate=rate,
        most_seconds=num_positions * extractor.hop_length / rate,
        is_padded=False,
    )


def _towers(model: Any) -> dict[str, Any]:
    """Encoders of media by modality, in the order video, audio, both."""
    parts = {"video": _part(model, "video"), "audio": _part(model, "audio")}
    towers = {name: getattr(part, f"{name}_encoder") for name, part in parts.items() if part}
    if hasattr(model, "audio_video_encoder"):
        towers[BOTH] = model.audio_video_encoder
    return towers


def _heads(model: Any) -> dict[tuple[str, str], Any]:
    """Heads by modality and space; the last space of video and of text is that of both."""
    heads = {}
    video, audio = _part(model, "video"), _part(model, "audio")
    if video and audio:
        heads["video", "va"] = video.video_head
        heads["audio", "va"] = audio.audio_head
    if audio:
        heads["audio", "at"] = audio.audio_head
        heads["text", "at"] = audio.text_audio_head
    if hasattr(model, "audio_video_encoder"):
        heads[BOTH, "avt"] = model.audio_video_head
        heads["text", "avt"] = model.text_audio_video_head
    if video:
        heads["video", "vt"] = video.video_head
        heads["text", "vt"] = video.text_video_head
    return heads


def _part(model: Any, modality: str) -> Any:
    """The model of one modality and text: a part of PE-AV, the model itself, or None."""
    if hasattr(model, f"{modality}_encoder"):
        return model
    return getattr(model, f"{modality}_model", None)


def _passes(modality: str, rows: Sequence[Any]) -> list[list[int]]:
    """Places of rows that pass together: of one length, with frames that fit into memory."""
    if modality == "text":
        return [[*range(len(rows))]]
    by_length: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows):
        windows = row if modality == BOTH else (row,)
        by_length.setdefault(tuple(map(len, windows)), []).append(place)
    passes = []
    for lengths, places in by_length.items():
        most = len(rows) if modality == "audio" else max(1, FRAMES_PER_PASS // lengths[0])
        passes += [places[start : start + most] for start in range(0, len(places), most)]
    return passes


@contextlib.contextmanager
def _pictures_in_parts(model: nn.Module) -> Iterator[None]:
    """Context in which the picture towers take `FRAMES_PER_PASS` frames at a time."""
    towers = [
        module for name, module in model.named_modules() if name.endswith("embedder.vision_model")
    ]
    for tower in towers:
        tower.forward = _in_parts(tower.forward)
    try:
        yield
    finally:
        for tower in towers:
            del tower.forward  # that of the class is seen again


def _in_parts(forward: Callable[..., Any]) -> Callable[..., Any]:
    def classify(pixels: Tensor) -> Any:
        outputs = [forward(part) for part in pixels.split(FRAMES_PER_PASS)]
        outputs[0].logits = torch.cat([output.logits for output in outputs])
        return outputs[0]

    return classify
