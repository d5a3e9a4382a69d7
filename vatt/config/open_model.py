"""Settings of an open model of others that is fine-tuned contrastively."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vatt.config.checks import check_positive, from_plain
from vatt.config.geometry import MODALITIES, AudioConfig, TextConfig, VideoConfig
from vatt.config.model import HeadConfig
from vatt.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TowersConfig:
    """Pre-trained encoders, one for each modality, which get our heads.

    Args:
        video: Folder or hub id of an encoder of video (VideoMAE) or of pictures (ViT, the pictures
            of CLIP or SigLIP). None: no video.
        audio: Folder or hub id of an encoder of sound (AST, wav2vec 2.0, the sound of CLAP). None:
            no sound.
        text: Folder or hub id of an encoder of text (BERT and its like). None: no text.

    Raises:
        UserError: fewer than two are given.
    """

    video: str | None = None
    audio: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        """Refuses a single tower."""
        if len(self.sources) < 2:
            raise UserError("model.towers needs two of video, audio and text")

    @property
    def sources(self) -> dict[str, str]:
        """Folder or hub id of each encoder by modality, in the order of modalities."""
        given = {name: getattr(self, name) for name in MODALITIES}
        return {name: source for name, source in given.items() if source is not None}


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA), which train instead of the weights that they are added to.

    Args:
        rank: Rank of the adapters.
        alpha: Scale of the adapters, times `rank`.
        dropout: Dropout rate of the adapters' input.
        layers: Glob patterns of the names of linear layers that get adapters.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    layers: tuple[str, ...] = ("*attn*", "*attention*")

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        check_positive(self, "lora", "rank", "alpha")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class OpenModelConfig:
    """Settings of an open model: where it comes from, and the clips that it gets.

    `vatt.open_models.settings.read_settings` fills them from the model's own files.

    Args:
        source: Folder or hub id of a whole model (CLIP, SigLIP, CLAP, PE-AV). None: `towers`.
        towers: Encoders of single modalities, instead of a whole model.
        head: Heads of `towers`; a whole model has its own.
        lora: Adapters to train. None: the weights are trained themselves.
        frozen: Glob patterns of the names of weights that are not trained, such as
            `*text_model*`.
        modalities: Modalities of the model.
        video: Geometry of video clips; tokens are the model's own business.
        audio: Geometry of audio clips.
        text: Number of ids, with padding as id 0, and the length of captions.

    Raises:
        UserError: neither or both of `source` and `towers` are given.
    """

    source: str | None = None
    towers: TowersConfig | None = None
    head: HeadConfig | None = None
    lora: LoraConfig | None = None
    frozen: tuple[str, ...] = ()
    modalities: tuple[str, ...] = MODALITIES
    video: VideoConfig = field(default_factory=VideoConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        """Refuses settings without a model, or with two."""
        for name in ("modalities", "frozen"):  # YAML has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if (self.source is None) == (self.towers is None):
            raise UserError(
                "give a model to fine-tune: --model.init_args.init_from FOLDER_OR_HUB_ID, or "
                "--model.init_args.model.towers with an encoder for each modality, not both"
            )
        if (self.head is None) != (self.towers is None):
            raise UserError("model.head is for model.towers: a whole model has heads of its own")

    def to_dict(self) -> dict[str, Any]:
        """These settings as plain containers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "OpenModelConfig":
        """Settings from a dict that `to_dict` made.

        Raises:
            UserError: an unknown key.
        """
        result: OpenModelConfig = from_plain(cls, values, "config")
        return result
