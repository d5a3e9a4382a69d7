"""How the network is computed changes nothing of what it computes."""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from compiler_warnings import COMPILES, LOADS_COMPILER
from rank_processes import run_ranks
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_runs import fit_arguments, read_losses

from vatt.batch import Batch, MicroBatches
from vatt.cli import main
from vatt.config.geometry import SpectrogramConfig
from vatt.config.model import VATTConfig
from vatt.config.presets import as_classifier, preset
from vatt.network import log_mel as audio
from vatt.network.layers import KEPT_RESULTS, Checkpointing
from vatt.network.model import VATT
from vatt.training.accumulation import forward_cached
from vatt.training.compute import checkpoint_activations, compile_towers

ARRANGEMENTS = ("agnostic", "specific")
ROWS, CANDIDATES, WORDS = 4, 2, 16
SPECTROGRAM = SpectrogramConfig(
    window_samples=1024, hop_samples=128, num_mels=10, max_hertz=4000.0, patch_size=(10, 5)
)
# torch 2.13 still scripts functions as its compiler loads them, though it has deprecated that, and
# hides a warning of its own in a way that filters do not know:
# https://github.com/pytorch/pytorch/pull/189914, https://github.com/pytorch/torchdynamo/pull/163


def model_of(arrangement: str = "agnostic", *, dropout: float = 0.1, num_layers: int = 3) -> VATT:
    """With DropToken; blocks that draw, unless told not to."""
    torch.manual_seed(0)
    config = preset("tiny")
    encoder = replace(config.encoder, dropout=dropout, num_layers=num_layers)
    return VATT(replace(config, arrangement=arrangement, encoder=encoder))


def batch_of(seed: int, *, rows: int = ROWS) -> Batch:
    """Clips of which others lack sound or words at each seed; captions as long as they come."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(1, 256, (rows, CANDIDATES, WORDS), generator=generator)
    lengths = torch.randint(0, 5 + 2 * seed, (rows, CANDIDATES, 1), generator=generator)
    lengths[0, 0] = 4 + seed
    lengths[1:2, 0] = 2  # padded
    audio_mask = torch.rand(rows, generator=generator) < 0.6
    audio_mask[:2] = True
    return Batch(
        video=torch.randint(256, (rows, 4, 32, 32, 3), dtype=torch.uint8, generator=generator),
        audio=torch.rand(rows, 6_400, generator=generator) - 0.5,
        text=text * (torch.arange(WORDS) < lengths),
        audio_mask=audio_mask,
    )


def gradients_of(model: VATT, batch: Batch) -> dict[str, Tensor]:
    """Of a step with fixed draws."""
    model.zero_grad()
    torch.manual_seed(1)
    # not of the embeddings: BatchNorm over four clips would enlarge the rounding of sums
    sum(value.exp().mean() for value in model(batch).features.values()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def count_kept_bytes(model: VATT, batch: Batch) -> int:
    """Of what a forward pass keeps for the backward pass."""
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(batch)
    return sum(sizes)


@pytest.fixture
def compiler() -> Iterator[None]:
    """A compiler that has seen nothing, and a count of what it compiles."""
    limit = torch.compiler.config.recompile_limit
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.config.recompile_limit = limit
    torch.compiler.reset()


def forget_torchaudio() -> None:
    """As before the first spectrogram of a process."""
    for kept in (audio._spectrogram, audio._filter_bank_on, audio.load_torchaudio):
        kept.cache_clear()


def num_graphs() -> int:
    return counters["stats"]["unique_graphs"]


class LiveBytes(TorchDispatchMode):
    """Counts the memory of results that still exist, and products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.num_products = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **kwargs or {})
        self.num_products += func in KEPT_RESULTS
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                storage = result.untyped_storage()
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return results

    def count(self) -> int:
        return sum(size for reference, size in self._storages.values() if not reference.expired())


def test_selective_checkpointing_keeps_less_than_half_and_multiplies_no_weight_again() -> None:
    live, products = {}, {}
    for kind in (False, "selective", True):
        model, batch = model_of(num_layers=8), batch_of(0)
        checkpoint_activations(model, kind)
        with torch.autocast("cpu", torch.bfloat16), LiveBytes() as mode:
            output = model(batch)
            live[kind] = mode.count()
        total = sum(value.float().mean() for value in output.features.values())
        with LiveBytes() as mode:
            total.backward()
        products[kind] = mode.num_products
    assert live[True] < live["selective"] < 0.5 * live[False]
    assert products["selective"] == products[False] < 0.8 * products[True]


@pytest.mark.parametrize("kind", [True, "selective"])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_checkpointing_leaves_every_bit_of_the_gradients(
    arrangement: str, kind: Checkpointing
) -> None:
    kept, recomputed = model_of(arrangement), model_of(arrangement)
    checkpoint_activations(recomputed, kind)
    expected, actual = (gradients_of(model, batch_of(0)) for model in (kept, recomputed))
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        assert torch.equal(gradient, actual[name]), name


def test_checkpointing_keeps_little_of_the_blocks() -> None:
    shallow, deep = (model_of(num_layers=number) for number in (2, 8))
    of_six_blocks = count_kept_bytes(deep, batch_of(0)) - count_kept_bytes(shallow, batch_of(0))
    checkpoint_activations(shallow)
    checkpoint_activations(deep)
    left = count_kept_bytes(deep, batch_of(0)) - count_kept_bytes(shallow, batch_of(0))
    assert left < of_six_blocks / 10


def test_selective_checkpointing_of_compiled_blocks_is_refused(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["checkpoint_activations=selective", "compile_towers=true"]
    arguments = [f"--model.init_args.{option}" for option in options]
    assert main(fit_arguments(tiny_shards, tmp_path / "run", *arguments)) == 1
    assert "selective does nothing for compiled blocks" in capsys.readouterr().err


def test_compiling_without_a_compiler_is_refused_before_training(
    tiny_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    option = "--model.init_args.compile_towers=true"
    assert main(fit_arguments(tiny_shards, tmp_path / "run", option)) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "compile_towers needs a compiler (g++ or clang++, or its path in CXX)" in message
    assert "--model.init_args.compile_towers false" in message


@LOADS_COMPILER
def test_names_and_weights_stay_as_they_are() -> None:
    model, plain = model_of(), model_of()
    checkpoint_activations(model)
    compile_towers(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    plain.load_state_dict(model.state_dict())


@LOADS_COMPILER
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@COMPILES
@pytest.mark.usefixtures("compiler")
def test_blocks_of_all_modalities_share_graphs_and_none_is_added_by_later_steps(
    arrangement: str,
) -> None:
    model = model_of(arrangement)
    compile_towers(model, backend="eager")  # graphs are captured alike, and cost nothing to compile
    gradients_of(model, batch_of(0))
    assert num_graphs() == 2  # with padding and without
    for seed in range(1, 5):
        gradients_of(model, batch_of(seed, rows=ROWS + seed // 3))
    assert num_graphs() == 2
    assert not counters["graph_break"]
    model.eval()
    for seed in range(2):
        with torch.no_grad():
            model(batch_of(seed))
    assert num_graphs() == 4


class Sums(nn.Module):
    """A network with a loss, as DDP wants it."""

    def __init__(self, network: VATT) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> Tensor:
        features = self.network(batch).features
        return torch.stack([value.mean() for value in features.values()]).sum()


def count_graphs_in_ddp() -> int:
    """Graphs of the blocks in a step of DDP whose buckets are smaller than a block."""
    graphs = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    warnings.simplefilter("ignore")  # as in `COMPILES`
    dist._DEFAULT_FIRST_BUCKET_BYTES = 1000
    network = model_of()
    compile_towers(network, backend=note)
    module = DistributedDataParallel(
        Sums(network), bucket_cap_mb=0.005, find_unused_parameters=True
    )
    module(batch_of(0)).backward()
    return len(graphs)


@pytest.mark.slow
@pytest.mark.ddp
def test_ddp_splits_no_graph(tmp_path: Path) -> None:
    assert run_ranks(count_graphs_in_ddp, 1, tmp_path) == [2]  # with padding and without


@LOADS_COMPILER
@COMPILES
@pytest.mark.usefixtures("compiler")
def test_one_row_adds_graphs_once_and_the_limit_is_far() -> None:
    model = model_of("specific")
    compile_towers(model, backend="eager")
    for _ in range(2):
        for rows in (4, 2):
            batch = batch_of(0, rows=rows)
            gradients_of(model, batch)
            gradients_of(model, replace(batch, audio_mask=torch.arange(rows) == 0))
    assert num_graphs() == 3


@LOADS_COMPILER
@COMPILES
@pytest.mark.usefixtures("compiler")
def test_the_limit_of_graphs_holds_in_the_thread_that_runs_backward_passes_on_a_gpu() -> None:
    model = model_of("specific")
    compile_towers(model, backend="eager")

    def run() -> None:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            for rows, dtype in product((1, 2, 4), (torch.float32, torch.bfloat16)):
                with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                    gradients_of(model.train(), batch_of(0, rows=rows))
                    with torch.no_grad():
                        model.eval()(batch_of(1, rows=rows))

    with ThreadPoolExecutor(1) as thread:
        thread.submit(run).result()
    assert num_graphs() > 8  # which torch allows in a new thread


@LOADS_COMPILER
@COMPILES
@pytest.mark.usefixtures("compiler")
def test_spectrogram_made_at_the_first_step_is_no_part_of_a_graph() -> None:
    config = preset("tiny")
    model = VATT(replace(config, audio=replace(config.audio, spectrogram=SPECTROGRAM)))
    compile_towers(model, backend="eager")
    audio._spectrogram.cache_clear()
    audio._filter_bank_on.cache_clear()
    gradients_of(model, batch_of(0))
    assert num_graphs() == 2
    assert not counters["graph_break"]


def shrunk(config: VATTConfig) -> VATTConfig:
    """A model of the same structure, of the sizes of `batch_of`."""
    tiny = preset("tiny")
    towers = {}
    for name in ("encoder", "video_encoder", "audio_encoder", "text_encoder"):
        tower, small = getattr(config, name), tiny.encoder
        if tower is not None:
            towers[name] = replace(small, bias=tower.bias, dropout=tower.dropout)
    has_mel = config.audio.spectrogram is not None
    audio = replace(tiny.audio, spectrogram=SPECTROGRAM if has_mel else None)
    head = config.head and tiny.head
    return replace(
        config, video=tiny.video, audio=audio, text=tiny.text, head=head, d_post=32, **towers
    )


def train_as_on_a_gpu(model: VATT, batch: Batch, *, micro: bool) -> None:
    """A step in 16 bits, with the backward pass in a thread of its own."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = MicroBatches.split(batch, 2)
        output = forward_cached(model, parts) if micro else model(batch)
        total = sum(value.float().mean() for value in output.features.values())
    with ThreadPoolExecutor(1) as thread:
        thread.submit(total.backward).result()


@pytest.mark.slow
@LOADS_COMPILER
@COMPILES
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("config", "way", "backend"),
    [
        (preset("ma-medium"), "recomputed", "eager"),
        (preset("ma-base"), "micro-batches", "aot_eager"),
        (preset("lbs"), "recomputed", "aot_eager"),
        (preset("bbs"), "micro-batches", "eager"),
        (preset("bbs-spectrogram"), "plain", "eager"),
        (as_classifier(preset("mbs"), "video", 5), "plain", "eager"),
        (as_classifier(preset("bbs"), "audio", 5), "plain", "eager"),
    ],
)
def test_recipes_compile_nothing_after_the_first_steps(
    config: VATTConfig, way: str, backend: str
) -> None:
    torch.manual_seed(0)
    model = VATT(shrunk(config))
    compile_towers(model, backend=backend)
    if way == "recomputed":
        checkpoint_activations(model)

    def train_and_validate(seed: int) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            model.eval()(batch_of(seed, rows=3))
        for rows in (4, 6):
            train_as_on_a_gpu(model.train(), batch_of(seed, rows=rows), micro=way[0] == "m")

    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        train_and_validate(0)
        num_first = num_graphs()
        for seed in range(1, 5):
            train_and_validate(seed)
    assert num_graphs() == num_first
    assert not counters["graph_break"]


@pytest.mark.slow
@LOADS_COMPILER
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@COMPILES
@pytest.mark.usefixtures("compiler")
def test_compiled_towers_make_the_same_outputs_and_gradients(arrangement: str) -> None:
    plain, compiled = (model_of(arrangement, dropout=0.0) for _ in range(2))
    compile_towers(compiled)
    for seed in range(5):
        batch = batch_of(seed)
        expected, actual = (gradients_of(model, batch) for model in (plain, compiled))
        # Sums in another order. In the reference packs each float32 gradient is up to 1e-5 of its
        # largest value off float64, so two may differ by 2e-5; 0.4e-5 was measured here.
        for name, gradient in expected.items():
            difference = (actual[name] - gradient).abs().max()
            assert difference <= 2e-5 * gradient.abs().max(), name
        for model in (plain, compiled):
            model.eval()
        with torch.no_grad():
            outputs = [vars(model(batch)) for model in (compiled, plain)]
        for kind in ("features", "embeddings"):
            torch.testing.assert_close(*(o[kind] for o in outputs), rtol=1e-5, atol=1e-5)
        for model in (plain, compiled):
            model.train()
        assert num_graphs() == 4


@pytest.mark.slow
@LOADS_COMPILER
@COMPILES
@pytest.mark.usefixtures("compiler")
def test_compiled_blocks_that_are_run_again_draw_the_same_dropout() -> None:
    kept, recomputed = model_of(), model_of()
    checkpoint_activations(recomputed)
    for model in (kept, recomputed):
        compile_towers(model)
    expected, actual = (gradients_of(model, batch_of(0)) for model in (kept, recomputed))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_run_with_checkpointing_has_the_same_losses(tiny_shards: Path, tmp_path: Path) -> None:
    option = "--model.init_args.checkpoint_activations="
    losses = []
    ways = {"kept": [], "recomputed": [f"{option}true"], "selective": [f"{option}selective"]}
    for name, more in ways.items():
        arguments = fit_arguments(tiny_shards, tmp_path / name, "--trainer.max_steps=4", *more)
        assert main(arguments) == 0
        losses.append(read_losses(tmp_path / name))
    assert len(losses[0]) == 4
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.slow
@LOADS_COMPILER
@COMPILES
@pytest.mark.usefixtures("compiler")
def test_compiled_run_goes_on_without_compiling(tiny_shards: Path, tmp_path: Path) -> None:
    steps, option = "--trainer.max_steps=3", "--model.init_args.compile_towers=true"
    average = "--run.ema_decay=0.9"  # a copy of the module beside the compiled one
    assert main(fit_arguments(tiny_shards, tmp_path, steps, option, average)) == 0
    assert num_graphs() > 0
    resumed = fit_arguments(tiny_shards, tmp_path, "--trainer.max_steps=5", average)
    assert main([*resumed, f"--ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}"]) == 0
    assert len(read_losses(tmp_path)) == 5
