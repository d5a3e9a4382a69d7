"""Class paths of version 0.1, which old configurations and run folders contain."""

import sys
from importlib import import_module

MOVED = {
    "vatt.pretrain": "vatt.training.pretrain",
    "vatt.finetune": "vatt.training.finetune",
    "vatt.sharding": "vatt.training.sharding",
    "vatt.retrieval_callback": "vatt.runs.retrieval_callback",
}


def keep_old_class_paths() -> None:
    """Makes old module names importable; each becomes a second name of the new module."""
    for old, new in MOVED.items():
        sys.modules.setdefault(old, import_module(new))
