import gc
import multiprocessing
import random
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import Dataset

from vatt.batch import Batch
from vatt.data.loader import PositionedLoader
from vatt.data.order import GlobalOrder
from vatt.errors import UserError

RECIPES = Path(__file__).parents[2] / "configs"
SIZES = [[7, 5, 9, 16]]  # 37 samples, no multiple of the batch


class References(Dataset):
    """Gives back what it is asked for."""

    def __getitems__(self, refs):
        return [(ref.position, ref.sample_index, ref.epoch) for ref in refs]


class Sets(Dataset):
    def __getitems__(self, refs):
        return refs


class Clips(Dataset):
    """Batches whose keys say what was asked for."""

    def __getitems__(self, refs):
        return Batch(audio=torch.zeros(len(refs), 1), keys=tuple(str(ref.position) for ref in refs))


class Slow(References):
    def __getitems__(self, refs):
        time.sleep(0.05)
        return super().__getitems__(refs)


class Broken(Dataset):
    def __getitems__(self, refs):
        if refs[0].position >= 8:
            raise UserError("clean the data", exit_code=3)
        return refs


def make(**changes):
    settings = {"batch_size": 4, "num_workers": 0, "start_method": "fork"} | changes
    samples = settings.pop("samples", References())
    return PositionedLoader(samples, GlobalOrder(SIZES, seed=5), **settings)


def take(loader, count):
    """The next batches, over as many passes as it needs."""
    batches = []
    while len(batches) < count:
        for batch in loader:
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


def wanted(start, count):
    order = GlobalOrder(SIZES, seed=5)
    refs = [order.ref(position) for position in range(start, start + count)]
    return [(ref.position, ref.sample_index, ref.epoch) for ref in refs]


def joined(batches):
    return [item for batch in batches for item in batch]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_passes_go_on_where_the_last_one_ended_and_lose_nothing(num_workers):
    loader = make(num_workers=num_workers)
    assert len(loader) == 9
    passes = [list(loader) for _ in range(3)]
    assert [len(one) for one in passes] == [9, 9, 9]
    assert joined(joined(passes)) == wanted(0, 27 * 4)
    loader.close()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_every_global_batch_without_overlap(world_size):
    ranks = [make(rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, parts in enumerate(zip(*(take(rank, 12) for rank in ranks), strict=True)):
        assert sorted(joined(parts)) == wanted(step * 4, 4)
        assert len({len(part) for part in parts}) == 1


@pytest.mark.parametrize("stop", [1, 8, 9, 10, 20])
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_a_run_resumes_at_its_position_with_other_workers(stop, before, after):
    first = make(num_workers=before)
    taken = take(first, stop)
    state = first.state_dict()
    first.close()
    second = make(num_workers=after)
    second.load_state_dict(state)
    rest = take(second, 25 - stop)
    second.close()
    assert joined(taken + rest) == wanted(0, 100)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2)])
def test_a_run_resumes_with_another_number_of_ranks(before, after):
    ranks = [make(rank=rank, world_size=before) for rank in range(before)]
    parts = [joined(take(rank, 5)) for rank in ranks]
    states = [rank.state_dict() for rank in ranks]
    assert all(state == states[0] for state in states)
    for rank in range(after):
        loader = make(rank=rank, world_size=after)
        loader.load_state_dict(states[0])
        parts.append(joined(take(loader, 6)))
    assert sorted(joined(parts)) == wanted(0, 44)


def mixed_order():
    return GlobalOrder([[70, 50], [30]], [1.0, 1.0], seed=6)


def mixed(batch_size, **settings):
    return PositionedLoader(Sets(), mixed_order(), batch_size=batch_size, **settings)


def test_every_step_of_all_ranks_together_has_the_share_of_each_set():
    ranks = [mixed(16, rank=rank, world_size=4) for rank in range(4)]
    steps = list(zip(*(take(rank, 30) for rank in ranks), strict=True))
    assert all(sum(ref.set_index for ref in joined(parts)) == 8 for parts in steps)
    assert {ref.set_index for ref in joined(parts[0] for parts in steps)} == {0, 1}


def test_a_run_of_mixed_sets_resumes_in_the_order_it_began_also_with_another_batch_size():
    first = mixed(16)
    refs = joined(take(first, 3))
    second = mixed(24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load_state_dict(first.state_dict())
    refs += joined(take(second, 2))
    order = mixed_order()
    order.mix_within(16)
    assert refs == [order.ref(position) for position in range(96)]


def test_a_state_of_an_earlier_version_keeps_its_order():
    order = mixed_order()  # as that version mixed them
    state = {"position": 32, "batches_in_pass": 2, "order": order.fingerprint()}
    loader = mixed(16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.load_state_dict(state)
    assert joined(take(loader, 3)) == [order.ref(position) for position in range(32, 80)]
    assert loader.state_dict()["mixed_within"] is None


def test_other_sets_than_those_of_the_state_are_mixed_within_the_batches_of_the_run():
    other = PositionedLoader(Sets(), GlobalOrder([[70], [30]], [1.0, 2.0]), batch_size=8)
    loader = mixed(16)
    with pytest.warns(UserWarning, match="another order"):
        loader.load_state_dict(other.state_dict())
    assert loader.order.mixed_within == 16


@pytest.mark.parametrize("num_workers", [0, 2])
def test_micro_batches_are_the_parts_of_a_share_and_resume_as_other_sizes(num_workers):
    settings = {"samples": Clips(), "batch_size": 8, "world_size": 2, "rank": 1}
    first = make(**settings, micro_batch_size=2, num_workers=num_workers)
    taken = take(first, 3)
    assert [[len(part) for part in batch.parts] for batch in taken] == [[2, 2]] * 3
    assert first.position == 24
    rest = []
    for size in (4, None):
        second = make(**settings, micro_batch_size=size)
        second.load_state_dict(first.state_dict())
        rest.append(take(second, 2))
    first.close()
    for batches in rest:
        keys = joined(batch.keys for batch in taken + batches)
        assert keys == [str(position) for position in range(1, 40, 2)]


@pytest.mark.parametrize(("num_workers", "size"), [(2, 1), (2, 2), (2, 8)])
def test_the_parts_of_two_steps_are_read_in_advance(num_workers, size):
    asked = []
    settings = {"samples": Clips(), "batch_size": 8, "micro_batch_size": size}
    loader = make(**settings, num_workers=num_workers, announce=asked.append)
    take(loader, 1)
    assert asked[:3] == [0, 8, 16]


def simulated_wait_share(num_parts, num_workers, prefetch_factor, part_seconds, step_seconds):
    """Share of the time that steps wait, by a clock of its own, after the first steps.

    The rules of torch's loader: part n is made by worker n modulo the workers, each is asked for
    `prefetch_factor` parts in advance, and for one more when a part is taken, in order. A part
    takes from half to one and a half of its mean time.
    """
    draws, free, ready = random.Random(0), [0.0] * num_workers, []
    now = waited = 0.0

    def ask():
        worker = len(ready) % num_workers
        free[worker] = max(free[worker], now) + part_seconds * draws.uniform(0.5, 1.5)
        ready.append(free[worker])

    for _ in range(prefetch_factor * num_workers):
        ask()
    for step in range(200):
        begin = now
        for part in range(step * num_parts, (step + 1) * num_parts):
            now = max(now, ready[part])
            ask()
        if step == 5:
            first, waited = now, 0.0
        waited += now - begin
        now += step_seconds
    return waited / (now - first)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 14 worker processes")
def test_recipe_of_one_gpu_waits_little_for_its_parts():
    recipe = yaml.safe_load((RECIPES / "pretrain_ma_base_1gpu.yaml").read_text())
    data, model = recipe["data"]["init_args"], recipe["model"]["init_args"]
    clips, workers = model["micro_batch_size"], data["num_workers"]
    parts = data["batch_size"] // clips
    options = {"batch_size": data["batch_size"], "micro_batch_size": clips}
    factor = make(num_workers=workers, **options)._loader.prefetch_factor
    part_seconds = clips / 21.6  # clips per second of a worker, see docs/data.md
    step_seconds = 1.05 * parts * part_seconds / workers  # the workers are hardly faster than that
    times = (part_seconds, step_seconds)
    assert simulated_wait_share(parts, workers, factor, *times) <= 0.05
    assert simulated_wait_share(parts, workers, 2, *times) > 0.3  # torch's default


@pytest.mark.parametrize("size", [0, 3, 8])
def test_micro_batches_that_do_not_divide_a_share_are_refused(size):
    with pytest.raises(UserError, match="has 4 clips of a batch of 8: micro_batch_size must"):
        make(batch_size=8, world_size=2, micro_batch_size=size)


def test_the_rest_of_an_interrupted_pass_comes_before_a_whole_one():
    loader = make()
    take(loader, 4)
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert [len(list(resumed)) for _ in range(3)] == [5, 9, 9]


def test_a_pass_that_was_left_early_does_not_shorten_the_next():
    loader = make()
    take(loader, 4)
    assert len(list(loader)) == 9
    assert loader.position == 13 * 4


def test_the_position_has_moved_on_when_a_batch_is_handed_out():
    loader = make(num_workers=1)  # which has prepared more than was taken
    iterator = iter(loader)
    for step in range(1, 10):
        next(iterator)
        state = loader.state_dict()
        assert (state["position"], state["batches_in_pass"]) == (step * 4, step % 9)
    loader.close()


def test_making_an_iterator_takes_nothing():
    loader = make()
    iter(loader), iter(loader)
    assert loader.position == 0
    assert take(loader, 1)[0] == wanted(0, 4)


def test_another_batch_size_goes_on_at_the_position():
    loader = make()
    take(loader, 8)
    resumed = make(batch_size=6)
    resumed.load_state_dict(loader.state_dict())
    assert joined(take(resumed, 3)) == wanted(32, 18)


def test_a_state_of_other_data_is_used_with_a_warning():
    state = make().state_dict()
    other = PositionedLoader(References(), GlobalOrder(SIZES, seed=6), batch_size=4)
    with pytest.warns(UserWarning, match="not those of the checkpoint"):
        other.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().load_state_dict(state)


def test_a_batch_that_the_ranks_cannot_share_is_refused():
    with pytest.raises(UserError, match="4 must be a multiple of the 3 ranks"):
        make(world_size=3)


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(UserError, match=r"data\.num_workers must be at least 0, got -1"):
        make(num_workers=-1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_for_the_user_comes_out_of_a_worker_as_it_is(num_workers):
    loader = make(samples=Broken(), num_workers=num_workers)
    with pytest.raises(UserError) as caught:
        list(loader)
    assert str(caught.value) == "clean the data"
    assert loader.position == 8


def test_reading_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for num_workers in (0, 1):
        loader = make(num_workers=num_workers)
        take(loader, 2)
        loader.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_nominal_epoch_can_be_set():
    assert len(make(batches_per_epoch=3)) == 3
    assert len(make(batch_size=100)) == 1


def test_a_forgotten_loader_ends_its_workers_at_once():
    loader = make(num_workers=2)
    iterator = iter(loader)
    next(iterator)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    gc.disable()  # it would end them too, after five seconds each
    try:
        del loader, iterator
        assert [worker.exitcode for worker in workers] == [0, 0]
    finally:
        gc.enable()


def test_the_loader_tells_how_long_a_batch_was_waited_for():
    loader = make(samples=Slow())
    take(loader, 1)
    assert loader.wait_seconds >= 0.05
    assert loader.asked_at + loader.wait_seconds <= time.perf_counter()
