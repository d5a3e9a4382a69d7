"""`modules.json` of a model folder: how the sentence-transformers library loads it."""

import json
from pathlib import Path

from vatt.system.files import write_atomically

MODULES = "modules.json"  # of a model folder
CLASS_PATH = "vatt.sentence_transformers.VATTModule"  # read from the installed vatt


def write_modules_json(folder: Path) -> None:
    """Writes `modules.json`, which names the class that loads the other files of the folder.

    With it, `SentenceTransformer` loads the folder. For vatt itself it only says that the model is
    one of vatt.
    """
    modules = [{"idx": 0, "name": "0", "path": "", "type": CLASS_PATH}]
    write_atomically(folder / MODULES, (json.dumps(modules, indent=2) + "\n").encode())
