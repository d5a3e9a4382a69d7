"""The order of the code: what may import what, and what must stay unloaded until it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vatt

ROOT = Path(__file__).resolve().parents[1]

# A file imports from lower floors only. A new file gets its place here.
FLOORS = (
    # what stands alone
    {"vatt.errors"},
    {"vatt.config_checks", "vatt.batch", "vatt.metrics", "vatt.draws"}
    | {"vatt.files", "vatt.machine", "vatt.png", "vatt.shard_index", "vatt.inputs"}
    | {"vatt.workers", "vatt.ranks", "vatt.storage_order", "vatt.classification_metrics"}
    | {"vatt.hub", "vatt.arguments"},
    {"vatt.sources", "vatt.csv_files"},
    {"vatt.config", "vatt.tensor_bundle", "vatt.vocabulary", "vatt.transforms"}
    | {"vatt.feature_files"},
    {"vatt.presets", "vatt.audio", "vatt.preprocess_constants"},
    {"vatt.official"},
    {"vatt.official_names"},
    {"vatt.official_shapes"},
    # media and shards
    {"vatt.encode", "vatt.packets", "vatt.text", "vatt.shard_cache"},
    {"vatt.decode", "vatt.stores"},
    {"vatt.decode_sound"},
    {"vatt.media", "vatt.remote"},
    {"vatt.preprocess", "vatt.shards", "vatt.views"},
    {"vatt.howto100m", "vatt.windows"},
    {"vatt.captions"},
    {"vatt.index_shards"},
    {"vatt.check_shards", "vatt.reencode_sound"},
    {"vatt.reencode"},
    {"vatt.media_folder"},
    {"vatt.build_shards"},
    # the network
    {"vatt.layers", "vatt.optim", "vatt.contrast"},
    {"vatt.heads"},
    {"vatt.tokens", "vatt.classification"},
    {"vatt.model"},
    {"vatt.losses", "vatt.checkpoint", "vatt.flops", "vatt.accumulation", "vatt.compute"},
    {"vatt.convert", "vatt.costs", "vatt.utilisation"},
    {"vatt.embedder"},
    {"vatt.encoding"},
    {"vatt.features", "vatt.extract_inputs"},
    {"vatt.feature_stores", "vatt.feature_media"},
    {"vatt.extract"},
    {"vatt.extract_ranks"},
    {"vatt.evaluate"},
    {"vatt.evaluation_items"},
    {"vatt.retrieval_sets", "vatt.zero_shot_retrieval", "vatt.classification_sets"},
    {"vatt.frozen_features"},
    {"vatt.linear_evaluation"},
    {"vatt.zero_shot_classification"},
    {"vatt.demo_linear", "vatt.report_media"},
    {"vatt.report_clips", "vatt.media_table"},
    {"vatt.feature_folders", "vatt.search_exact", "vatt.search_files", "vatt.search_query"},
    {"vatt.search_approximate"},
    {"vatt.search_build"},
    {"vatt.search"},
    {"vatt.search_page"},
    {"vatt.report_sections"},
    {"vatt.report"},
    {"vatt.demo_report"},
    # training data
    {"datamodules.order", "datamodules.failures", "datamodules.clips", "datamodules.augment"}
    | {"datamodules.run_tokenizer", "datamodules.annotations"},
    {"datamodules.loader"},
    {"datamodules.cache"},
    {"datamodules.samples", "datamodules.retrieval", "datamodules.prefetch"},
    {"datamodules.labelled_files"},
    {"datamodules.labelled"},
    {"datamodules.streamed"},
    {"datamodules.pretrain", "datamodules.classification"},
    {"datamodules.synthetic_scenes", "datamodules.synthetic_workers"},
    {"datamodules.synthetic_captions", "datamodules.synthetic_sounds"},
    {"datamodules.synthetic"},
    {"datamodules"},
    # training and commands
    {"vatt.config_files", "vatt.loggers", "vatt.progress", "vatt.environment"},
    {"vatt.run_checkpoint", "vatt.media_log", "vatt.results"},
    {"vatt.training_facts"},
    {"vatt.model_card_sections"},
    {"vatt.model_card", "vatt.export_towers"},
    {"vatt.export"},
    {"vatt.callbacks"},
    {"vatt.sharding"},
    {"vatt.training_module"},
    {"vatt.pretrain", "vatt.finetune", "vatt.run_folder", "vatt.retrieval_callback"},
    {"vatt.training_cli"},
    {"vatt.demo"},
    {"vatt.mteb_model"},
    {"vatt.evaluate_mteb"},
    {"vatt.commands", "vatt.doctor", "vatt.evaluate_commands"}
    | {"vatt.feature_commands", "vatt.export_commands"},
    {"vatt.cli"},
)
FLOOR_OF = {module: number for number, floor in enumerate(FLOORS) for module in floor}
TRAINING = {
    f"vatt.{name}"
    for name in (
        *("callbacks", "finetune", "loggers", "media_log", "pretrain", "progress"),
        *("retrieval_callback", "run_checkpoint", "run_folder", "sharding"),
        *("training_cli", "training_module"),
    )
}
MAY_IMPORT_DATAMODULES = {"vatt.demo", "vatt.commands", "vatt.training_cli"}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("vatt", "datamodules")
    for path in sorted((ROOT / package).glob("*.py"))
}


def imported_modules(module: str) -> Iterator[str]:
    """Full names of all that a file imports when it runs, at its top or inside functions."""
    tree = ast.parse(FILES[module].read_text())
    type_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in set(ast.walk(tree)) - type_only:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import; write the full name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else node.module


def packages(module: str) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(module)}


@pytest.mark.parametrize("module", sorted(set(FILES) - {"vatt"}))
def test_file_imports_from_lower_floors_only(module: str) -> None:
    assert module in FLOOR_OF, f"{module} is new: give it a floor in this test"
    for name in set(imported_modules(module)) & FILES.keys() - {"vatt"}:
        assert FLOOR_OF[name] < FLOOR_OF[module], f"{module} must not import {name}"


@pytest.mark.parametrize("module", sorted(FILES))
def test_library_knows_neither_data_modules_nor_lightning(module: str) -> None:
    used = packages(module)
    if module.startswith("vatt") and module not in MAY_IMPORT_DATAMODULES:
        assert "datamodules" not in used
    if module.startswith("vatt") and module not in TRAINING:
        assert not used & {"lightning", "pytorch_lightning"}
    if module not in {"vatt.callbacks", "vatt.loggers"}:
        assert "wandb" not in used


@pytest.mark.parametrize(
    ("statement", "unloaded"),
    [
        ("import vatt", ("torch", "numpy", "av", "lightning", "wandb")),
        ("import vatt.cli", ("torch", "numpy", "av", "lightning", "wandb", "jsonargparse")),
        ("from vatt import VATT, Batch, preset", ("av", "lightning", "wandb", "torchaudio")),
        ("from vatt import FeatureExtractor", ("lightning", "wandb", "torchaudio", "pyarrow")),
        ("from vatt import read_clip, ShardSet", ("lightning", "wandb", "torchaudio")),
    ],
)
def test_import_leaves_heavy_packages_unloaded(statement: str, unloaded: tuple[str, ...]) -> None:
    assert loaded_by(statement, unloaded) == []


def test_help_answers_without_torch() -> None:
    statement = (
        "from vatt.cli import main\n"
        "try:\n    code = main(['--help'])\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        "assert not code"
    )
    assert loaded_by(statement, ("torch", "numpy", "av", "lightning", "jsonargparse")) == []


def loaded_by(statement: str, modules: tuple[str, ...]) -> list[str]:
    """Which of the modules a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint()\nprint(*sorted({set(modules)} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_public_names_resolve_and_hide_no_module() -> None:
    for name in vatt.__all__:
        assert getattr(vatt, name).__name__ == name
        assert f"vatt.{name}" not in FILES
    assert set(vatt.__all__) <= set(dir(vatt))
    with pytest.raises(AttributeError, match="no attribute 'VAT'"):
        _ = vatt.VAT


def test_editors_see_the_public_names_that_load_on_use() -> None:
    tree = ast.parse(FILES["vatt"].read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        (alias.name, node.module)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {(name, f"vatt.{module}") for name, module in vatt._MODULE_OF.items()}
    assert set(vatt.__all__) == set(vatt._MODULE_OF)
