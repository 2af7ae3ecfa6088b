"""What a runner gives back when it sleeps, and that it computes the same afterwards. CPU tensors stand in for a GPU's."""

from functools import partial

import pytest
import torch
from device_road import CallRecorder

from quire_worker.dormant import Dormant
from quire_worker.errors import WakeError
from quire_worker.execution import dormancy
from quire_worker.execution.build import build_runner
from quire_worker.execution.dormancy import DeviceDormancy, HostDormancy, storages_of
from quire_worker.execution.options import RunnerOptions


def resident_runner(model_dir, recorder):
    """A runner as on a GPU, and its sleep: weights that torch holds, a KV pool whose memory can go."""
    options = RunnerOptions(
        model_dir=model_dir,
        device="cpu",
        dtype="float16",
        ops="reference",
        compute_threads=1,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_model_len=128,
        num_gpu_blocks_override=40,
        is_resident=True,
    )
    runner, _ = build_runner(options, open_recorder=lambda: recorder)
    model = runner._steps._model
    kv_cache = torch.zeros_like(runner._kv_cache)
    model.bind_kv_cache(kv_cache)
    runner._kv_cache = kv_cache
    runner._dormancy = DeviceDormancy(model=model, kv_cache=kv_cache, steps=runner._steps, pin=False)
    return runner


def tokens_of(runner, plans):
    first = plans.run(
        runner, plans.step([0], [5], new=[plans.new(0, [4, 9, 2, 77, 3], [1, 2], seed=5, temperature=1.0)])
    )
    rest = plans.continue_rows(runner, [0], 12)
    plans.run(runner, plans.step([], [], freed=[0]))
    return [first[0], *rest[0]]


def test_a_device_gives_weights_and_pool_back_and_computes_the_same_after_each_sleep(model_dir, plans):
    recorder = CallRecorder()
    runner = resident_runner(model_dir, recorder)
    weights = storages_of(runner._steps._model, beside=[runner._kv_cache.untyped_storage()])
    before = tokens_of(runner, plans)
    sizes = [storage.nbytes() for storage in weights]

    seen = []
    for _ in range(2):
        given = sum(runner.fall_asleep())
        seen.append((given, [storage.nbytes() for storage in weights], runner._kv_cache.untyped_storage().nbytes()))
        num_recordings = len(recorder.recordings)
        taken = sum(runner.wake())
        assert taken == given
        assert num_recordings == 0
        assert recorder.recordings
        assert tokens_of(runner, plans) == before

    assert sum(sizes) > 0
    assert seen == [(sum(sizes) + runner._kv_cache.nbytes, [0] * len(sizes), 0)] * 2


def test_the_host_copy_goes_over_the_ends_of_chunks(model_dir, plans):
    runner = resident_runner(model_dir, CallRecorder())
    runner._dormancy = DeviceDormancy(
        model=runner._steps._model, kv_cache=runner._kv_cache, steps=runner._steps, pin=False, chunk_bytes=1000
    )
    before = tokens_of(runner, plans)

    for _ in runner.fall_asleep():
        pass
    for _ in runner.wake():
        pass

    assert tokens_of(runner, plans) == before


def test_every_weight_of_the_model_is_found(model_dir):
    runner = resident_runner(model_dir, CallRecorder())
    model = runner._steps._model

    found = storages_of(model, beside=[runner._kv_cache.untyped_storage()])

    assert sum(storage.nbytes() for storage in found) >= model.weights_size_bytes


def test_tensors_are_found_through_attributes_containers_closures_and_partials_each_once():
    class Slotted:
        __slots__ = ("kept", "unset")

        def __init__(self, kept):
            self.kept = kept

    a, b, c, d, e = (torch.ones(2) for _ in range(5))
    root = {"x": [Slotted(a)], "y": (partial(print, b), lambda: c), "z": {1: a.view(1, 2)}, "beside": d}
    root["itself"] = root

    found = storages_of(root, beside=[d.untyped_storage()])

    assert sorted(storage.data_ptr() for storage in found) == sorted(t.data_ptr() for t in (a, b, c))
    assert e.data_ptr() not in {storage.data_ptr() for storage in found}


def test_a_device_without_room_stays_asleep_and_can_be_woken_later():
    weight = torch.arange(8.0)
    kv_cache = torch.ones(4)
    dormancy_ = DeviceDormancy(model=[weight], kv_cache=kv_cache, steps=None, pin=False)
    assert sum(dormancy_.fall_asleep()) == 48
    full = [(storage, 2**62) for storage, _ in dormancy_._sizes]
    right, dormancy_._sizes = dormancy_._sizes, full

    with pytest.raises(WakeError, match="no room for the"):
        next(dormancy_.wake())
    dormancy_._sizes = right
    woken = sum(dormancy_.wake())

    assert woken == 48
    assert weight.tolist() == list(range(8))
    assert kv_cache.tolist() == [0.0] * 4


def test_on_a_host_the_pools_pages_go_and_read_as_zeros_and_the_weights_stay(runner, plans):
    before = tokens_of(runner, plans)
    pool = runner._kv_cache
    assert pool.abs().sum() > 0

    given = sum(runner.fall_asleep())

    assert isinstance(runner, Dormant)
    assert 0 < given <= pool.nbytes
    assert pool.view(torch.uint8).view(-1)[: pool.nbytes // 65536 * 65536].sum() == 0
    assert list(runner.wake()) == []
    assert tokens_of(runner, plans) == before


def test_only_whole_pages_of_the_pools_own_are_given_back():
    page = dormancy.mmap.PAGESIZE
    memory = torch.ones(5 * page, dtype=torch.uint8)
    start = -memory.data_ptr() % page + 1
    pool = memory[start : start + 3 * page]

    given = sum(HostDormancy(pool).fall_asleep())

    assert given == 2 * page
    assert memory.sum() == 3 * page


def test_a_model_without_a_cache_has_nothing_to_give_back_on_a_host():
    assert list(HostDormancy(None).fall_asleep()) == []
