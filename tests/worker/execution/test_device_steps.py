"""A GPU's road, on a CPU: rows resident on the device, recorded decode steps, nothing that waits. Tokens are those of the host's road."""

import itertools
import random

import pytest
import torch
from device_road import CallRecorder, NoWaiting

from quire_worker.engine.engine import Engine
from quire_worker.execution.build import build_runner
from quire_worker.execution.device_steps import DeviceSteps
from quire_worker.execution.options import RunnerOptions
from quire_worker.kv.block_manager import BlockManager
from quire_worker.kv.block_pool import BlockPool
from quire_worker.plan import KVGroup, TokenMasks
from quire_worker.request import SamplingParams, Submit
from quire_worker.scheduling.limits import SchedulerLimits
from quire_worker.scheduling.scheduler import Scheduler

ROWS = 6
CHUNK = 24
KINDS = (
    {"temperature": 0.0},
    {"seed": 3, "top_p": 0.9, "frequency_penalty": 0.5},
    {"seed": 2**63 + 1, "top_k": 7, "logprobs": 3},
    {"temperature": 0.0, "repetition_penalty": 1.3, "min_tokens": 6, "eos_token_ids": (5, 17, 900)},
    {"temperature": 0.0, "logit_bias": ((4, 1.0), (40, -2.0)), "logprobs": 2},
)


def road(model_dir, recorder=None, **changes):
    """A runner whose rows are resident."""
    values = {"is_resident": True, "ops": "reference", "num_gpu_blocks_override": 40, "max_num_seqs": ROWS} | changes
    options = RunnerOptions(
        model_dir=model_dir, device="cpu", compute_threads=1, max_num_batched_tokens=CHUNK, max_model_len=128, **values
    )
    return build_runner(options, open_recorder=None if recorder is None else lambda: recorder)[0]


def generate(runner, *, depth, blocks=40, num_requests=9, kinds=KINDS):
    """(tokens, logprobs) of requests of all kinds; with few blocks some are preempted."""
    rng = random.Random(1)
    kv = BlockManager(BlockPool(blocks, 1), 16, [KVGroup(num_layers=2)])
    limits = SchedulerLimits(
        max_num_seqs=ROWS,
        max_num_batched_tokens=CHUNK,
        max_model_len=128,
        max_num_queued_reqs=100,
        max_num_queued_tokens=10**6,
        vocab_size=96,
    )
    scheduler = Scheduler(kv, limits, itertools.count().__next__)
    engine = Engine(scheduler, runner, depth=depth)
    for i in range(num_requests):
        prompt = [rng.randrange(96) for _ in range(rng.choice((1, 2, 15, 16, 17, 33, 50)))]
        sampling = SamplingParams(max_tokens=rng.randrange(5, 30), **kinds[i % len(kinds)])
        assert scheduler.add(Submit(request_id=str(i), prompt_token_ids=prompt, sampling=sampling)) is None
    tokens: list[list[int]] = [[] for _ in range(num_requests)]
    logprobs: list[list[object]] = [[] for _ in range(num_requests)]
    while scheduler.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            tokens[int(output.request_id)] += output.token_ids
            logprobs[int(output.request_id)] += [(entry.rank, entry.top_ids) for entry in output.logprobs or []]
    scheduler.check()
    return tokens, logprobs


@pytest.fixture(scope="module")
def expected(model_dir):
    """What the host's road gives."""
    return generate(road(model_dir, is_resident=False), depth=1)


@pytest.mark.parametrize("depth", [1, 2])
def test_resident_rows_give_the_same_tokens(model_dir, expected, depth):
    assert generate(road(model_dir), depth=depth) == expected


def test_preempted_requests_give_the_same_tokens(model_dir, expected):
    assert generate(road(model_dir), depth=2, blocks=14) == expected


def test_replayed_steps_give_the_same_tokens_and_each_size_is_recorded_once(model_dir, expected):
    recorder = CallRecorder()

    found = generate(road(model_dir, recorder), depth=2)

    assert found == expected
    assert 2 <= len(recorder.recordings) <= 4  # of 1, 2, 4 and 8 rows
    assert sum(recording.num_replays for recording in recorder.recordings) > 20


def test_a_step_of_fewer_rows_than_its_recording_leaves_other_rows_and_the_null_block_alone(model_dir, plans):
    recorder = CallRecorder()
    runner = road(model_dir, recorder)
    new = [plans.new(row, [1, 2, 3 + row], [1 + row]) for row in range(6)]
    plans.run(runner, plans.step(range(6), [3] * 6, new=new))
    null_block = runner._kv_cache[0].clone()
    counts = runner._steps._rows._counts.clone()

    tokens = plans.run(runner, plans.step([1, 3, 4], [1, 1, 1]))

    assert list(tokens) == [1, 3, 4]
    assert torch.equal(runner._kv_cache[0], null_block)
    grown = runner._steps._rows._counts - counts
    assert grown.tolist() == [[0, 1, 0, 1, 1, 0]] * 2


def test_the_largest_size_is_recorded_before_the_first_step(model_dir):
    recorder = CallRecorder()

    steps = road(model_dir, recorder)._steps

    assert isinstance(steps, DeviceSteps)
    assert steps._graphs.shapes[0] == (8, 9)  # 6 rows, rounded up; 136 tokens


def test_without_graphs_nothing_is_recorded(model_dir, plans):
    recorder = CallRecorder()

    runner = road(model_dir, recorder, enforce_eager=True)
    plans.run(runner, plans.step([0], [2], new=[plans.new(0, [1, 2], [1])]))

    assert runner._steps._graphs is None
    assert recorder.recordings == []


class FailingRecorder(CallRecorder):
    """Fails at its second recording, half-way."""

    def record(self, call):
        recording = super().record(call)
        if len(self.recordings) > 1:
            raise RuntimeError("operation not permitted when stream is capturing")
        return recording


def test_a_recording_that_fails_is_told_once_and_changes_no_token(model_dir, expected, caplog):
    recorder = FailingRecorder()

    found = generate(road(model_dir, recorder), depth=2)

    assert found == expected
    assert len(recorder.recordings) == 2
    (line,) = [record.getMessage() for record in caplog.records if "not recorded" in record.getMessage()]
    assert "RuntimeError: operation not permitted" in line
    assert "--enforce-eager" in line


def test_neither_launch_nor_sample_waits_for_the_device(model_dir, plans):
    runner = road(model_dir, CallRecorder())
    new = [plans.new(row, [1, 2, 3 + row], [1 + row], **kind) for row, kind in enumerate(KINDS)]
    allowed = TokenMasks(rows=[0], bits=memoryview(bytearray(b"\xff" * 12)))
    many = range(len(KINDS))

    with NoWaiting():
        handles = [runner.launch(plans.step(many, [2, 3, 3, 3, 1], new=new))]
        runner.sample(handles[0], None)
        for counts in ([1, 1, 1, 1, 2], [1] * 5, [1] * 5):
            plan = plans.step(many, counts, grown=[(1, 0, [20])], replaced=[(1, 0, 1, 21)], copies=[(1, 22)])
            handles.append(runner.launch(plan))
            runner.sample(handles[-1], allowed)

    results = [handle.result() for handle in handles]
    assert [len(result.rows) for result in results] == [3, 5, 5, 5]
    assert results[-1].logprobs[2] is not None


@pytest.mark.parametrize(
    "wait",
    [lambda x: x.item(), bool, lambda x: x.tolist(), lambda x: x.nonzero(), lambda x: x[x > 0]],
)
def test_what_waits_is_noticed(model_dir, plans, wait):
    runner = road(model_dir)
    head = runner._steps._model._head

    def waiting_head(x):
        # As if it were the decoder's own code.
        exec(compile("wait(x)", "/quire_worker/models/decoder.py", "exec"), {"wait": wait, "x": x[0, 0]})
        return head(x)

    runner._steps._model._head = waiting_head
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        runner.launch(plans.step([0], [2], new=[plans.new(0, [1, 2], [1])]))
