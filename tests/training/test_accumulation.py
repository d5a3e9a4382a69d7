"""Cached accumulation: the gradients of one graph over the same micro-batches."""

import dataclasses
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from compiler_warnings import COMPILES, LOADS_COMPILER
from rank_processes import run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from training_runs import EXACT, fit_arguments, read_losses, signal_options

from datamodules.augment import augment_batch
from vatt import ContrastiveLoss, LossConfig, preset
from vatt.batch import Batch, MicroBatches
from vatt.cli import main
from vatt.config.augment import AugmentConfig
from vatt.config.model import HeadConfig
from vatt.gpu_check.one_graph import forward_in_one_graph
from vatt.network.model import VATT, VATTOutput
from vatt.system.ranks import rank, world_size
from vatt.training.accumulation import forward_cached
from vatt.training.compute import compile_towers
from vatt.training.rank_forward import forward_on_rank

ROWS, CANDIDATES = 12, 3
Forward = Callable[[VATT, MicroBatches], VATTOutput]


def make_network(*, draws: bool = True, **changes: Any) -> VATT:
    torch.manual_seed(0)
    config, head = preset("tiny"), HeadConfig(kind="fac", batch_norm="all")
    encoder = dataclasses.replace(config.encoder, dropout=0.1 if draws else 0.0)
    changes |= {"head": head, "encoder": encoder, "drop_token": 0.5 if draws else 0.0}
    return VATT(dataclasses.replace(config, **changes)).double()


def make_batch(masks: str = "random") -> Batch:
    """The first three clips have no captions, the next three no sound."""
    generator = torch.Generator().manual_seed(1)
    config = preset("tiny")
    size = config.video.image_size
    video_mask, audio_mask = (torch.rand(ROWS, generator=generator) < 0.8 for _ in range(2))
    text_mask = torch.rand(ROWS, CANDIDATES, generator=generator) < 0.7
    text_mask[:3], audio_mask[3:6] = False, False
    if masks == "no words":
        text_mask[:] = False
    elif masks == "one rank mute":
        audio_mask[: ROWS // 2] = False
    shape = (ROWS, config.video.num_frames, size, size, 3)
    return Batch(
        video=torch.randint(256, shape, generator=generator, dtype=torch.uint8),
        audio=torch.randn(ROWS, config.audio.num_samples, generator=generator),
        text=torch.randint(1, 9, (ROWS, CANDIDATES, 4), generator=generator),
        video_mask=video_mask,
        audio_mask=audio_mask,
        text_mask=text_mask,
    )


def make_parts(masks: str = "random") -> MicroBatches:
    return MicroBatches.split(make_batch(masks), 3)


def train_once(forward: Forward, network: VATT, batches: MicroBatches) -> dict[str, Tensor]:
    """Loss, gradients and batch statistics of one step, and the next random number."""
    loss = ContrastiveLoss(LossConfig(learn_temperature=True))
    torch.manual_seed(7)
    total = loss(forward(network, batches), batches).total
    total.backward()
    values = {"total": total.detach(), "scale": loss.log_scale.grad}
    values |= {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return values | {f"{name} after": value.clone() for name, value in network.named_buffers()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    for name, value in expected.items():
        size = max(float(value.abs().max()), 1e-3)  # some gradients are nothing but rounding
        assert float((actual[name] - value).abs().max()) <= rtol * size, name
    for name in actual.keys() - expected.keys():  # weights that no part needs
        assert not actual[name].any(), name


@pytest.mark.parametrize("arrangement", ["agnostic", "specific"])
@pytest.mark.parametrize("masks", ["random", "no words"])
def test_gradients_are_those_of_one_graph_with_the_same_draws(arrangement: str, masks: str) -> None:
    batches = make_parts(masks)
    one = train_once(forward_in_one_graph, make_network(arrangement=arrangement), batches)
    cached = train_once(forward_cached, make_network(arrangement=arrangement), batches)
    assert_same(cached, one, 1e-11)


def test_draws_of_the_encoders_do_not_move_the_generator() -> None:
    network, after = make_network(), []
    for num_parts in (1, 4):
        batches = make_parts()
        batches = dataclasses.replace(batches, parts=batches.parts[:num_parts])
        torch.manual_seed(7)
        torch.randint(2**62, (4 - num_parts,))  # one seed for each part is all that is drawn
        forward_cached(network, batches)
        after.append(torch.rand(1).item())
    assert after[0] == after[1]


def test_gradients_in_bfloat16_are_those_of_one_graph() -> None:
    results = []
    for forward in (forward_in_one_graph, forward_cached):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(train_once(forward, make_network().float(), make_parts()))
    assert_same(results[1], results[0], 1e-6)


def test_backward_outside_of_autocast_casts_as_the_forward_pass_did() -> None:
    results = []
    for forward in (forward_in_one_graph, forward_cached):
        network, batches = make_network().float(), make_parts()
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = ContrastiveLoss(LossConfig())(forward(network, batches), batches).total
        total.backward()
        results.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert_same(results[1], results[0], 1e-6)


def test_parts_are_changed_alike_each_time_they_are_looked_at() -> None:
    batches = make_parts()
    darker = dataclasses.replace(
        batches, change=lambda batch: dataclasses.replace(batch, video=batch.video // 2)
    )
    first, second = (torch.cat([part.video for part in darker]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, torch.cat([part.video for part in batches]) // 2)


def test_both_passes_see_the_same_pictures_under_autocast() -> None:
    batch, seen = make_batch(), []
    batch = batch.with_inputs(seeds=torch.arange(ROWS))
    augment = AugmentConfig(color_jitter_rate=1.0, audio_noise=0.01)

    def change(part: Batch) -> Batch:
        changed = augment_batch(part, augment)
        seen.append((changed.video, changed.audio))
        return changed

    network = make_network().float()
    batches = dataclasses.replace(MicroBatches.split(batch, 3), change=change)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = ContrastiveLoss(LossConfig())(forward_cached(network, batches), batches).total
    total.backward()
    changed = augment_batch(batch, augment)
    for videos, sounds in (zip(*one, strict=True) for one in (seen[:4], seen[4:])):
        assert torch.equal(torch.cat(videos), changed.video)
        assert torch.equal(torch.cat(sounds), changed.audio)


@pytest.mark.slow
@LOADS_COMPILER
@COMPILES
@pytest.mark.parametrize("arrangement", ["agnostic", "specific"])
def test_all_at_once_has_the_gradients_of_one_graph(arrangement: str) -> None:
    """Changed pictures, dropout, DropToken, 16 bits, compiled, backward in a thread of its own."""
    batch = make_batch().with_inputs(seeds=torch.arange(ROWS))
    augment = AugmentConfig(color_jitter_rate=1.0, audio_noise=0.01)
    batches = dataclasses.replace(
        MicroBatches.split(batch, 3), change=lambda part: augment_batch(part, augment)
    )
    results: list[dict[str, Tensor]] = []
    for forward in (forward_in_one_graph, forward_cached):
        torch.compiler.reset()
        network = make_network(arrangement=arrangement).float()
        compile_towers(network, backend="aot_eager")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # as a check before training
            network.eval()(augment_batch(batch, augment))
        network.train()
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16):
            total = ContrastiveLoss(LossConfig())(forward(network, batches), batches).total
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            if forward is forward_in_one_graph:
                total.backward()
            else:
                with ThreadPoolExecutor(1) as thread:
                    thread.submit(total.backward).result()
        towers: dict[str, list[Tensor]] = {}
        for name, weight in network.named_parameters():
            if weight.grad is not None:
                tower = ".".join(name.split(".")[: 2 if name.startswith("encoders") else 1])
                towers.setdefault(tower, []).append(weight.grad.flatten())
        results.append({name: torch.cat(parts) for name, parts in towers.items()})
    one, cached = results
    assert one.keys() == cached.keys()
    for name, gradient in one.items():
        assert (cached[name] - gradient).norm() <= 1e-2 * gradient.norm(), name


def test_parts_with_fewer_captions_are_filled_up() -> None:
    parts = make_parts().parts
    few = dataclasses.replace(
        parts[1], text=parts[1].text[:, :1], text_mask=parts[1].text_mask[:, :1]
    )
    without = dataclasses.replace(parts[2], text=None, text_mask=None)
    batches = MicroBatches(parts=(parts[0], few, without), device=parts[0].device)
    mask = batches.masks["text"]
    assert mask.shape == (9, CANDIDATES)
    assert torch.equal(mask[3:6, :1], few.text_mask)
    assert not mask[3:6, 1:].any()
    assert not mask[6:].any()


class Training(nn.Module):
    """Network and loss in one module, as DDP wants them."""

    def __init__(self, forward: Forward, *, draws: bool) -> None:
        super().__init__()
        self.network, self.loss = make_network(draws=draws), ContrastiveLoss(LossConfig())
        self._forward = forward

    def forward(self, batches: MicroBatches) -> Tensor:
        return self.loss(self._forward(self.network, batches), batches).total


def ddp_step(forward: Forward, masks: str, *, draws: bool) -> dict[str, Tensor]:
    """Gradients of a rank, which has half of the clips, and how often DDP exchanged some."""
    module = DistributedDataParallel(Training(forward, draws=draws))
    exchanges = []

    def exchange(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        exchanges.append(bucket.index())
        mean = bucket.buffer() / world_size()
        dist.all_reduce(mean)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(mean)
        return future

    module.register_comm_hook(None, exchange)
    parts = make_parts(masks).parts
    batches = MicroBatches(parts=parts[2 * rank() :][:2], device=parts[0].device)
    torch.manual_seed(7 + rank())
    module(batches).backward()
    values = {n: p.grad for n, p in module.module.named_parameters() if p.grad is not None}
    return values | {"exchanges": torch.tensor(exchanges)}


def forward_joined(network: VATT, batches: MicroBatches) -> VATTOutput:
    """This rank's clips in one batch."""
    columns = ("video", "audio", "text", "video_mask", "audio_mask", "text_mask")
    parts = {n: torch.cat([getattr(part, n) for part in batches]) for n in columns}
    return forward_on_rank(network, Batch(**parts))


def ddp_steps(masks: str, draws: bool) -> list[dict[str, Tensor]]:
    whole = forward_in_one_graph if draws else forward_joined
    return [ddp_step(forward, masks, draws=draws) for forward in (whole, forward_cached)]


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize(("masks", "draws"), [("random", True), ("one rank mute", False)])
def test_ranks_exchange_gradients_once_per_step(tmp_path: Path, masks: str, draws: bool) -> None:
    for one, cached in run_ranks(ddp_steps, 2, tmp_path, masks, draws):
        buckets = cached.pop("exchanges").tolist()
        assert sorted(buckets) == [*range(len(buckets))] == sorted(one.pop("exchanges").tolist())
        assert_same(cached, one, 1e-11)


@pytest.mark.slow
def test_a_run_in_micro_batches_is_the_run_without_them(tiny_shards: Path, tmp_path: Path) -> None:
    losses = []
    for number, options in enumerate(([], ["--model.init_args.micro_batch_size=2"])):
        run = tmp_path / f"run-{number}"
        assert main(fit_arguments(tiny_shards, run, *EXACT, *options)) == 0
        losses.append([float(loss) for loss in read_losses(run).values()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-8)


@pytest.mark.slow
def test_a_run_in_micro_batches_resumes_exactly(tiny_shards: Path, tmp_path: Path) -> None:
    micro = "--model.init_args.micro_batch_size=4"
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main(fit_arguments(tiny_shards, whole, micro)) == 0
    stop = signal_options("step", signal.SIGTERM, step=5)
    assert main(fit_arguments(tiny_shards, run, micro, *stop)) == 128 + signal.SIGTERM
    resumed = ["fit", f"--config={run / 'config.yaml'}", "--ckpt_path=last"]
    assert main([*resumed, "--trainer.callbacks=null"]) == 0
    assert read_losses(run) == read_losses(whole)


@pytest.mark.parametrize("size", ["3", "0"])
def test_micro_batches_that_do_not_divide_the_batch_are_refused(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    options = f"--model.init_args.micro_batch_size={size}"
    assert main(fit_arguments(tiny_shards, tmp_path / "run", options)) == 1
    assert "must divide them" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
