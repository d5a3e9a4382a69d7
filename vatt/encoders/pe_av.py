"""`PeAvEncoder`: Perception Encoder Audio-Visual (PE-AV) of Meta, in the form of transformers.

Source: Vyas et al., "Pushing the Frontier of Audiovisual Perception with Large-Scale Multimodal
Correspondence Learning", arXiv 2512.19687; `transformers.models.pe_audio_video`.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vatt.config.geometry import AudioWindow, VideoWindow
from vatt.encoders.encoder import BOTH, Encoder
from vatt.encoders.transformers_loading import load_pretrained, load_timm, load_transformers
from vatt.errors import CheckpointError, UserError
from vatt.models.checkpoint import sha256_of

# classes by `model_type` of config.json
MODEL_CLASSES = {
    "pe_audio_video": "PeAudioVideoModel",
    "pe_audio": "PeAudioModel",
    "pe_video": "PeVideoModel",
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
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products; weights and heads stay float32.
        window_seconds: Length of a window where the caller names none.
        frame_rate: Frames per second, for models that read any number of frames.

    Raises:
        UserError: the device or dtype does not exist, or a time is not positive.
    """

    video: VideoWindow | None
    audio: AudioWindow | None

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        *,
        window_seconds: float = WINDOW_SECONDS,
        frame_rate: float = FRAME_RATE,
    ) -> None:
        super().__init__(model, device, dtype)
        self.processor = processor
        self._towers = _towers(model)
        self.modalities = (*(name for name in self._towers if name != BOTH), "text")
        self._heads = _heads(model)
        self.max_tokens = min(MAX_TEXT_TOKENS, processor.tokenizer.model_max_length)
        self.video = self.audio = None
        if "video" in self.modalities:
            self.video = _video_window(processor.video_processor, window_seconds, frame_rate)
        if "audio" in self.modalities:
            rate = processor.feature_extractor.sampling_rate
            self.audio = AudioWindow(num_samples=round(window_seconds * rate), sample_rate=rate)

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
        """See `Encoder`; with what the tokenizer writes before and behind the words."""
        if not text.strip():
            return 0
        return len(self.processor.tokenizer(text, verbose=False)["input_ids"])

    def encode(
        self, modality: str, rows: Sequence[Any], spaces: Sequence[str | None]
    ) -> dict[str | None, Tensor]:
        """See `Encoder`. Windows of unequal length are padded, which the encoders leave out."""
        parts = [self._pooled(modality, some) for some in _passes(modality, rows)]
        pooled = torch.cat(parts).float()
        vectors: dict[str | None, Tensor] = {None: pooled}
        for space in spaces:
            if space is not None:
                vectors[space] = self._heads[modality, space](pooled)
        return {space: vectors[space] for space in spaces}

    def digest(self) -> str:
        """See `Encoder`: of weights, configuration and settings of the processor."""
        tokenizer = json.loads(self.processor.tokenizer.backend_tokenizer.to_str())
        settings = {
            "model": _without_places(self.model.config.to_dict()),
            # those two are of its last call
            "tokenizer": tokenizer | {"padding": None, "truncation": None},
            "max_tokens": self.max_tokens,
        }
        for name in ("video_processor", "feature_extractor"):
            if (part := getattr(self.processor, name, None)) is not None:
                settings[name] = _without_places(part.to_dict())
        text = json.dumps(settings, sort_keys=True, default=str)
        # the towers share weights, which have several names there
        weights = dict(self.model.named_parameters())
        stored = self.model.state_dict().keys()
        buffers = {name: one for name, one in self.model.named_buffers() if name in stored}
        return sha256_of(text.encode(), weights | buffers)

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
        text_model: Any = self.model.text_model
        hidden: list[Tensor] = []
        with contextlib.ExitStack() as stack:
            if (norm := getattr(text_model, "final_norm", None)) is not None:  # of ModernBERT
                hook = norm.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
                stack.callback(hook.remove)
            stack.enter_context(self.autocast())
            output = text_model(**self._moved(wanted))
        last: Tensor = hidden[0] if hidden else output.last_hidden_state
        return last[:, 0]

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


def load_pe_av(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    window_seconds: float = WINDOW_SECONDS,
    frame_rate: float = FRAME_RATE,
) -> PeAvEncoder:
    """Loads PE-AV, or one of its parts, with its processor.

    Args:
        source: Folder, or `org/name` on the Hugging Face Hub, such as `facebook/pe-av-base`.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products. "auto": bfloat16 on CUDA, else float32.
        revision: Branch, tag or commit on the Hub.
        window_seconds: Length of a window where the caller names none.
        frame_rate: Frames per second, for models that read any number of frames.

    Raises:
        CheckpointError: the model does not exist, cannot be read or is of another kind.
        UserError: a package is not installed, or a time is not positive.
    """
    transformers = load_transformers()
    options = {} if revision is None else {"revision": revision}
    name = os.fspath(source)
    try:
        config = transformers.AutoConfig.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: {' '.join(str(error).split())}") from error
    if config.model_type not in MODEL_CLASSES:
        raise CheckpointError(f"{name} is a model of type {config.model_type}, not PE-AV")
    if "PeAudioFrameLevelModel" in (config.architectures or ()):
        raise CheckpointError(
            f"{name} has a vector for each 40 ms of sound and none for a window: give one of the "
            "models pe-av"
        )
    timm = None if config.model_type == "pe_audio" else load_timm()  # its picture tower
    model_class = getattr(transformers, MODEL_CLASSES[config.model_type])
    try:
        model = load_pretrained(model_class, name, **options)
    except AttributeError as error:
        raise UserError(
            f"PE-AV of transformers {transformers.__version__} does not fit timm "
            f'{getattr(timm, "__version__", "")} ({error}): pip install "vatt[pe-av]"'
        ) from error
    processor = transformers.AutoProcessor.from_pretrained(name, **options)
    return PeAvEncoder(
        model, processor, device, dtype, window_seconds=window_seconds, frame_rate=frame_rate
    )


def _video_window(processor: Any, window_seconds: float, frame_rate: float) -> VideoWindow:
    """Window of a model: its number of frames, evenly spread, or frames at a rate."""
    if processor.do_sample_frames and processor.num_frames:
        count = int(processor.num_frames)
        return VideoWindow(
            num_frames=count, frame_rate=count / window_seconds, has_fixed_count=True
        )
    one = VideoWindow(num_frames=1, frame_rate=float(processor.fps or frame_rate))
    return one.of_length(window_seconds)


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


def _passes(modality: str, rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Rows in groups whose frames fit into memory together; at least one row each."""
    count = len(rows)
    if modality in ("video", BOTH):
        longest = max(len(row[0] if modality == BOTH else row) for row in rows)
        count = max(1, FRAMES_PER_PASS // longest)
    for start in range(0, len(rows), count):
        yield rows[start : start + count]


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


def _without_places(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what changes from copy to copy: paths and versions."""
    left_out = ("_name_or_path", "name_or_path", "transformers_version", "processor_class")
    return {
        name: _without_places(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in left_out
    }
