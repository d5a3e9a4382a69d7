"""Forward pass of one rank, which calls every module even if its batch lacks a modality.

Ranks wait for each other in every module (DDP, FSDP2) and in every head (batch statistics).
"""

import torch
from torch import Tensor

from vatt.batch import Batch
from vatt.network.model import ClipConfig, ContrastiveNetwork, VATTOutput
from vatt.system.ranks import world_size


def forward_on_rank(network: ContrastiveNetwork, batch: Batch) -> VATTOutput:
    """Output of the network for this rank's share of a batch.

    In distributed training, if the share lacks a modality, one blank row is encoded, which has no
    effect on the loss.

    Args:
        network: Network in training or evaluation mode.
        batch: Clips of this rank.
    """
    absent = [name for name in network.config.modalities if not batch.facts.num_rows(name)]
    if not absent or not network.training or world_size() == 1:
        return network(batch)
    blank = {name: _blank_rows(network.config, name, batch) for name in absent}
    columns = {name: getattr(batch, name) for name in ("video", "audio", "text")}
    columns |= {f"{name}_mask": mask for name, mask in batch.masks.items()}
    for name, (rows, mask) in blank.items():
        columns |= {name: rows, f"{name}_mask": mask}
    features = network.encode_batch(Batch(**columns))
    masks = batch.masks
    for name in absent:
        features[name] = features[name][:0]
        masks.setdefault(name, no_row(len(batch), name, batch.device))
    return network.embed_rows(features, masks)


def no_row(num_clips: int, modality: str, device: torch.device) -> Tensor:
    """Mask of a modality that no clip has: bool `[B]`, for text `[B, 1]`."""
    shape = (num_clips, 1) if modality == "text" else (num_clips,)
    return torch.zeros(shape, dtype=torch.bool, device=device)


def _blank_rows(config: ClipConfig, modality: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """Blank rows (grey pictures, silence or one word) and a mask that selects only the first."""
    shape: tuple[int, ...] = (1, 1)
    if modality == "audio":
        shape = (config.audio.num_samples,)
    elif modality == "video":
        size = config.video.image_size
        shape = (config.video.num_frames, size, size, 3)
    make, dtype = (torch.ones, torch.int64) if modality == "text" else (torch.zeros, torch.float32)
    rows = make(1, *shape, dtype=dtype, device=batch.device).expand(len(batch), *shape)
    mask = torch.arange(len(batch), device=batch.device) == 0
    return rows, mask[:, None] if modality == "text" else mask
