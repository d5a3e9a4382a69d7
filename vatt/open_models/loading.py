"""Networks of open models from their settings, and their weights in the format they came in."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_model as save_tensors
from torch import Tensor

from vatt.config.open_model import OpenModelConfig
from vatt.errors import UserError
from vatt.open_models.lora import add_lora, merge_lora
from vatt.open_models.network import OpenModel, Scale
from vatt.open_models.settings import local_files, read_architecture
from vatt.open_models.towers import Towers
from vatt.open_models.whole_models import (
    AudioVideoTextModel,
    PictureTextModel,
    SoundTextModel,
    WholeModel,
)

NOT_COPIED = ("config.json", "*.index.json")  # written anew, with the weights
COPIED = ("*.json", "*.txt", "*.model", "*.jinja")
HEADS = "heads.safetensors"


def load_open_model(config: OpenModelConfig) -> OpenModel:
    """Network around an open model, with its pre-trained weights, in training mode.

    Args:
        config: Settings of `vatt.open_models.settings.read_settings`.

    Raises:
        UserError: the model cannot be loaded, or a setting does not fit it.
    """
    network: OpenModel
    if config.source is None:
        network = Towers(config)
    else:
        kind = read_architecture(config.source).model_type
        kinds: dict[str, type[WholeModel]] = {
            "clap": SoundTextModel,
            "pe_audio_video": AudioVideoTextModel,
        }
        network = kinds.get(kind, PictureTextModel)(config)
    if config.lora is not None:
        for name, part in network.named_children():
            if name in ("model", "towers"):
                add_lora(part, config.lora)
    network.freeze()
    return network.train()


def save_open_model(
    config: OpenModelConfig,
    weights: Mapping[str, Tensor],
    folder: Path,
    scales: Mapping[str, Scale] | None = None,
) -> None:
    """Writes a fine-tuned model in its own format, for `AutoModel.from_pretrained`.

    Adapters are merged into the weights. The files of tokenizer and processor are those of the
    model that training started from. Towers are written into folders of their modalities, and
    the heads beside them.

    Args:
        config: Settings of the network.
        weights: State dict of the network.
        folder: Folder to write.
        scales: Logit scales of the loss, by name of the pair. None: the model keeps its own.

    Raises:
        UserError: the weights do not fit the settings.
    """
    network = load_open_model(config).eval()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        source = config.source or config.towers
        raise UserError(f"the weights do not fit {source}: {reason:.300}") from error
    if config.lora is not None:
        merge_lora(network)
    if scales:
        network.set_scales(scales)
    if isinstance(network, WholeModel):
        assert config.source is not None
        _write(network.model, config.source, folder)
        return
    assert isinstance(network, Towers)
    assert config.towers is not None
    for name, source in config.towers.sources.items():
        _write(network.towers[name], source, folder / name)
    assert network.head is not None
    save_tensors(network.head, str(folder / HEADS))


def _write(model: object, source: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in COPIED:
        for file in local_files(source).glob(pattern):
            if not any(file.match(name) for name in NOT_COPIED):
                shutil.copyfile(file, folder / file.name)
    model.save_pretrained(folder)  # type: ignore[attr-defined]
