"""`VattConfig`: the configuration of our models in the form of transformers."""

import dataclasses
import json
import os
from typing import Any

from transformers import PreTrainedConfig

from vatt.config.model import VATTConfig

MODEL_TYPE = "vatt"
NAMES = tuple(field.name for field in dataclasses.fields(VATTConfig))
# Of every config.json of vatt, and of no other model's; it has no `model_type`, because older
# versions of vatt refuse keys that they do not know.
MARKS = {"format_version", "modalities", "arrangement", "video", "audio", "text", "encoder"}


class VattConfig(PreTrainedConfig):
    """Configuration of a VATT for transformers.

    It is read from the config.json of a model folder and written in the same form, without the
    settings that transformers adds.

    Args:
        kwargs: Keys of `vatt.VATTConfig`, with plain values as in config.json, and settings of
            transformers' `PreTrainedConfig`.

    Attributes:
        settings: The configuration as `vatt.VATTConfig`.

    Raises:
        UserError: a value is not valid.

    Example:
        >>> VattConfig(**vatt.preset("tiny").to_dict())
    """

    model_type = MODEL_TYPE

    def __post_init__(self, **kwargs: Any) -> None:
        """Takes the settings of vatt out of those of transformers."""
        settings = {name: kwargs.pop(name) for name in NAMES if name in kwargs}
        self.settings = VATTConfig.from_dict(settings)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Settings of vatt and of transformers as plain values."""
        values = super().to_dict()
        del values["settings"]
        return {**values, **json.loads(self.to_json_string())}

    def to_json_string(self, use_diff: bool = True) -> str:
        """Content of config.json, as `vatt.save_model` writes it."""
        return json.dumps(self.settings.to_dict(), indent=2) + "\n"


def read_config_files_of_vatt() -> None:
    """Makes transformers recognise a config.json of vatt, which names no `model_type`."""
    read = PreTrainedConfig._dict_from_json_file.__func__
    if getattr(read, "knows_vatt", False):
        return

    def read_and_mark(cls: type, json_file: str | os.PathLike[str]) -> Any:
        values = read(cls, json_file)
        if isinstance(values, dict) and "model_type" not in values and values.keys() >= MARKS:
            values["model_type"] = MODEL_TYPE
        return values

    read_and_mark.knows_vatt = True  # type: ignore[attr-defined]
    PreTrainedConfig._dict_from_json_file = classmethod(read_and_mark)
