"""The command `vatt convert`: an official checkpoint becomes a model folder."""

from pathlib import Path
from typing import Annotated

from vatt.system.files import read_json


def convert(
    checkpoint: Path,
    out: Path,
    *,
    vocabulary: Annotated[Path | None, "TXT"] = None,
    settings: Annotated[Path | None, "JSON"] = None,
    optimizer: bool = False,
) -> int:
    """Converts an official TensorFlow checkpoint, pre-trained or fine-tuned, to a model folder.

    Args:
        checkpoint: Prefix (…/ckpt-7), one of its files, or their folder.
        out: Folder to make.
        vocabulary: Official list of words, which becomes tokenizer.json.
        settings: Official configuration, for other sizes than the published ones.
        optimizer: Convert the moments of the optimiser, too.
    """
    from vatt.models.checkpoint import read_config
    from vatt.official.convert import convert as convert_checkpoint

    report = convert_checkpoint(
        checkpoint,
        out,
        settings=None if settings is None else read_json(settings),
        with_optimizer=optimizer,
        vocabulary=vocabulary,
    )
    print(report.summary())
    print(f"{out}: config.json, model.safetensors, conversion.json with every variable")
    if vocabulary is None and "text" in read_config(out).modalities:
        print("no tokenizer.json: give the list of words that its ids stand for by --vocabulary")
    return 0
