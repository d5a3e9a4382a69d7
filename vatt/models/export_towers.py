"""Towers as separate modules: from the raw input of one modality to features and embeddings.

Shape legend in `vatt.batch`.
"""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from vatt.config.model import VATTConfig
from vatt.network.heads import FACHead, JointHead, all_spaces
from vatt.network.model import VATT


class Tower(nn.Module):
    """Input, encoder, heads and classifier of one modality, in float32 and evaluation mode.

    It shares the weights of the model and has no others, so an export contains no unused ones.

    Args:
        model: Model that contains the tower; it is not changed.
        modality: A modality of the model.

    Raises:
        UserError: the model lacks the modality.
    """

    def __init__(self, model: VATT, modality: str) -> None:
        super().__init__()
        model.config.check_modality(modality)
        self.modality = modality
        self.backbone = _backbone(model, modality)
        self.head = None if model.head is None else _head(model.head, modality)
        self.float().cpu().requires_grad_(False).eval()

    def forward(self, raw: Tensor) -> dict[str, Tensor]:
        """All outputs of the model for an input, not normalised.

        Args:
            raw: uint8 `[B, T, H, W, 3]`, float32 in [-1, 1] `[B, S]`, or int64 `[B, J]` with 0 for
                padding, at the sizes of the model's configuration.

        Returns:
            float32 `[B, width]`: `features` of the backbone, then `va`, `vt` or `joint` if the
            model has them, and `logits` of a classifier.
        """
        features = self.backbone.encode(self.modality, raw, has_padding=True)
        return tower_outputs(self.backbone, self.head, self.modality, features)


def tower_outputs(
    backbone: VATT, head: FACHead | JointHead | None, modality: str, features: Tensor
) -> dict[str, Tensor]:
    """Outputs of `Tower.forward`, computed from the features of one modality.

    Args:
        backbone: Model with this modality; its own head is not used.
        head: Head of the model, or the part of it that this modality needs.
        modality: `video`, `audio` or `text`.
        features: float `[B, D]`.
    """
    outputs = {"features": features}
    if head is not None:
        outputs |= all_spaces(head, modality, features)
    classifier = backbone.classifier
    if classifier is not None and classifier.config.modality == modality:
        outputs["logits"] = classifier(features)
    return outputs


def _backbone(model: VATT, modality: str) -> VATT:
    """A model of this modality alone, without a head."""
    classifier = model.config.classifier
    if classifier is not None and classifier.modality != modality:
        classifier = None
    config = replace(model.config, modalities=(modality,), head=None, classifier=classifier)
    with torch.device("meta"):
        backbone = VATT(config)
    weights = model.state_dict()
    backbone.load_state_dict({name: weights[name] for name in backbone.state_dict()}, assign=True)
    return backbone


def _head(head: FACHead | JointHead, modality: str) -> FACHead | JointHead:
    """Copy of the head with the parts that the modality needs."""
    head = copy.deepcopy(head)
    if isinstance(head, JointHead):
        head.joint = nn.ModuleDict({modality: head.joint[modality]})
        return head
    for name, _ in list(head.named_children()):
        bridge = name == "va_vt" and modality in ("video", "audio")
        if not name.startswith(modality) and not bridge:
            setattr(head, name, None)
    return head


def parity_inputs(config: VATTConfig, modality: str) -> list[Tensor]:
    """Inputs for comparing an export with the model, including texts of one word and of none."""
    inputs = [random_input(config, modality, num_rows) for num_rows in (1, 3)]
    if modality == "text":
        padded = inputs[-1].clone()
        for row, length in zip(padded, (config.text.max_words // 2, 1, 0), strict=True):
            row[length:] = 0
        inputs += [padded, padded[-1:]]
    return inputs


def random_input(config: VATTConfig, modality: str, num_rows: int) -> Tensor:
    """Noise that fills a window, or a caption of random words; the same in every call.

    Returns:
        Input of `Tower.forward`.
    """
    generator = torch.Generator().manual_seed(num_rows)
    if modality == "video":
        size = config.video.image_size
        clip = (config.video.num_frames, size, size, 3)
        return torch.randint(0, 256, (num_rows, *clip), dtype=torch.uint8, generator=generator)
    if modality == "audio":
        return torch.rand(num_rows, config.audio.num_samples, generator=generator) * 2 - 1
    words = (num_rows, config.text.max_words)
    return torch.randint(1, config.text.vocab_size, words, generator=generator)
