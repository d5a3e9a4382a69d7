"""What all tests share: one thread each, and one tiny corpus with its shards for the whole run."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests run in several processes
os.environ.setdefault("WANDB_MODE", "offline")  # no test talks to the network
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from corpus import made_once

from vatt import VATT, ShardSet, Tokenizer, preset, save_model
from vatt.cli import main
from vatt.demo.corpus import write_corpus
from vatt.packing.build import build_shards

torch.set_num_threads(1)
# a shell's background jobs ignore Ctrl-C, which the processes that tests interrupt would inherit
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train/ and validation/: mp4 files and captions.jsonl, as in the demo."""

    def make(out: Path) -> None:
        write_corpus(
            out,
            num_train=24,
            num_validation_renderings=1,
            seed=0,
            num_workers=2,
            show_progress=False,
        )

    return made_once(tmp_path_factory, "corpus", make)


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Path:
    """Folder with train/ and validation/: the tiny corpus as tar shards, several of each."""

    def make(out: Path) -> None:
        for split, samples_per_shard in (("train", 8), ("validation", 50)):
            build_shards(
                tiny_corpus / split,
                out / split,
                samples_per_shard=samples_per_shard,
                order="sorted",
                show_progress=False,
            )

    return made_once(tmp_path_factory, "shards", make)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    """Folder of a finished run of ten steps; a test that writes into it copies it first."""

    def make(out: Path) -> None:
        from training_runs import fit_arguments  # here: it loads Lightning, which few rooms need

        assert main(fit_arguments(tiny_shards, out)) == 0

    return made_once(tmp_path_factory, "run", make)


@pytest.fixture(scope="session")
def exported_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model of one layer as `model`, and its export in all formats as `tiny`."""

    def make(out: Path) -> None:
        from tiny_models import ONE_LAYER, make_model

        from vatt.models.export import export_model

        tokenizer = Tokenizer.train(["a red ring spins and a dog barks"], 20)
        save_model(make_model(ONE_LAYER), out / "model", tokenizer)
        export_model(out / "model", out / "tiny")

    return made_once(tmp_path_factory, "export", make)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    """A tiny model with the tokenizer of the tiny corpus."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train(ShardSet(tiny_shards / "train").captions(), 256)
    save_model(VATT(preset("tiny")), folder, tokenizer)
    return folder
