"""Steps of the embedding engine, around embedders that fail as real ones might."""

from collections.abc import Sequence

import pytest

from quire_contract.load_report import LoadReport
from quire_worker.embedding import Embed, EmbedInput
from quire_worker.engine.embed_engine import EmbedEngine, warm_up_embeddings
from quire_worker.engine.engine import Engine
from quire_worker.engine.load_meter import LoadMeter, StepSpeeds
from quire_worker.errors import DeviceError, LoadError
from quire_worker.request import FAILED_NOT_FINITE, SamplingParams, Submit
from quire_worker.scheduling.embed_queue import EmbedQueue
from quire_worker.scheduling.limits import SchedulerLimits

POISON, NOT_FINITE = 13, 14
LIMITS = SchedulerLimits(
    max_num_seqs=16,
    max_num_batched_tokens=64,
    max_model_len=64,
    max_num_queued_reqs=16,
    max_num_queued_tokens=1000,
    vocab_size=100,
)


class FirstTokens:
    """An input's vector is its first token. Raises if there is poison anywhere in the batch."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error or ValueError("poisoned")
        self.batches: list[int] = []

    def embed(self, inputs: Sequence[EmbedInput]) -> list[bytes | None]:
        self.batches.append(len(inputs))
        if any(POISON in item.token_ids for item in inputs):
            raise self.error
        return [None if NOT_FINITE in item.token_ids else bytes([item.token_ids[0]]) for item in inputs]

    def close(self) -> None:
        pass


def engine_around(embedder: FirstTokens) -> EmbedEngine:
    return EmbedEngine(EmbedQueue(LIMITS, 4, lambda: 0.0), embedder)


def test_a_step_ends_every_input_of_its_batch() -> None:
    engine = engine_around(FirstTokens())
    engine.add(Embed(request_id="a", inputs=[[1], [2, 2]]))
    engine.add(Embed(request_id="b", inputs=[[3]]))

    outputs = engine.step()

    assert {(o.request_id, o.choice, o.finish_reason, o.embedding) for o in outputs} == {
        ("a", 0, "stop", b"\x01"),
        ("a", 1, "stop", b"\x02"),
        ("b", 0, "stop", b"\x03"),
    }
    assert (engine.last_step_rows, engine.last_step_tokens, engine.scheduler.counters.num_steps) == (3, 4, 1)
    assert engine.step() == []


def test_what_a_batch_raises_fails_only_the_inputs_that_cause_it() -> None:
    embedder = FirstTokens()
    engine = engine_around(embedder)
    engine.add(Embed(request_id="a", inputs=[[1], [2], [POISON], [4]]))
    engine.add(Embed(request_id="b", inputs=[[5], [6], [7]]))

    outputs = {(o.request_id, o.choice): o for o in engine.step()}

    assert [key for key, output in outputs.items() if output.finish_reason == "error"] == [("a", 2)]
    assert len(outputs) == 7
    assert outputs["b", 2].embedding == b"\x07"
    assert "ValueError" in (outputs["a", 2].error or "")
    assert "poisoned" not in (outputs["a", 2].error or "")


def test_a_vector_that_is_not_finite_fails_its_input() -> None:
    engine = engine_around(FirstTokens())
    engine.add(Embed(request_id="a", inputs=[[1], [NOT_FINITE]]))

    good, bad = engine.step()

    assert (good.finish_reason, bad.finish_reason, bad.embedding) == ("stop", "error", None)
    assert (good.error_code, bad.error_code) == (None, FAILED_NOT_FINITE)


def test_a_step_tells_what_ran_out_of_time() -> None:
    engine = engine_around(FirstTokens())
    engine.add(Embed(request_id="late", inputs=[[1], [2]], timeout_s=0.0))

    outputs = engine.step()

    assert [(o.request_id, o.choice, o.finish_reason) for o in outputs] == [
        ("late", 0, "deadline"),
        ("late", 1, "deadline"),
    ]
    assert (engine.last_step_tokens, engine.scheduler.has_work) == (0, False)


def test_a_broken_device_ends_the_engine() -> None:
    engine = engine_around(FirstTokens(DeviceError("lost")))
    engine.add(Embed(request_id="a", inputs=[[POISON]]))

    with pytest.raises(DeviceError):
        engine.step()


def test_an_embedder_that_fails_at_once_is_found_before_serving() -> None:
    class Broken(FirstTokens):
        def embed(self, inputs: Sequence[EmbedInput]) -> list[bytes | None]:
            raise RuntimeError("no")

    with pytest.raises(LoadError, match="first batch"):
        warm_up_embeddings(engine_around(Broken()))


def test_each_kind_of_engine_refuses_the_others_requests(rig: object) -> None:
    embeds = engine_around(FirstTokens())
    generates = Engine(rig().scheduler, rig().runner)  # type: ignore[operator]

    of_text = embeds.add(Submit(request_id="a", prompt_token_ids=[1], sampling=SamplingParams(max_tokens=1)))
    of_vectors = generates.add(Embed(request_id="a", inputs=[[1]]))

    assert of_text is not None and (of_text.reason, "generates no text" in of_text.message) == ("invalid", True)
    assert of_vectors is not None and (of_vectors.reason, "no embeddings" in of_vectors.message) == ("invalid", True)


def test_routers_hear_what_runs_and_what_waits() -> None:
    engine = engine_around(FirstTokens())
    for name in "abc":
        engine.add(Embed(request_id=name, inputs=[[1] * 30]))
    template = LoadReport(
        pod="p",
        model="m",
        epoch="e",
        ts=0.0,
        kv_seq=0,
        running=0,
        waiting=0,
        free_blocks=0,
        total_blocks=4,
        uncached_tokens=0,
    )

    report = LoadMeter(engine.scheduler, StepSpeeds(), template).report(5.0, draining=False)

    assert (report.running, report.waiting, report.uncached_tokens) == (2, 1, 90)
    assert (report.free_blocks, report.total_blocks) == (4, 4)
