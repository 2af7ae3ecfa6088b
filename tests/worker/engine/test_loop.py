"""The engine's loop over real sockets, with an engine that embeds."""

import msgspec
import zmq

from quire_worker.embedding import Embed
from quire_worker.engine.embed_engine import EmbedEngine
from quire_worker.engine.loop import EngineLoop
from quire_worker.engine.messages import FromEngine, Outputs, Rejected, Shutdown, ToEngine
from quire_worker.engine.retry_advice import RetryAdvice
from quire_worker.engine.stats import StatsCollector
from quire_worker.scheduling.embed_queue import EmbedQueue
from quire_worker.scheduling.limits import SchedulerLimits
from quire_worker.scheduling.speeds import StepSpeeds

LIMITS = SchedulerLimits(
    max_num_seqs=4,
    max_num_batched_tokens=64,
    max_model_len=64,
    max_num_queued_reqs=1,
    max_num_queued_tokens=1000,
    vocab_size=100,
)


class Ones:
    """Every vector is the same."""

    def embed(self, inputs: list[object]) -> list[bytes | None]:
        return [b"\x01"] * len(inputs)

    def close(self) -> None:
        pass


def run(*messages: ToEngine, prefill_tokens_per_s: float, mean_prompt_tokens: float) -> list[FromEngine]:
    """What the loop answers to these messages before it ends."""
    queue = EmbedQueue(LIMITS, 4, lambda: 0.0)
    speeds = StepSpeeds()
    speeds.prefill_tokens_per_s = prefill_tokens_per_s
    queue.counters.mean_prompt_tokens = mean_prompt_tokens
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        to_engine, inbound, outbound, from_engine = map(context.socket, (zmq.PUSH, zmq.PULL, zmq.PUSH, zmq.PULL))
        for bound, other, name in ((inbound, to_engine, "in"), (from_engine, outbound, "out")):
            bound.bind(f"inproc://{name}")
            other.connect(f"inproc://{name}")
        for message in (*messages, Shutdown()):
            to_engine.send(msgspec.msgpack.encode(message))
        advice = RetryAdvice(speeds, queue.counters, LIMITS.max_num_seqs)
        EngineLoop(EmbedEngine(queue, Ones()), inbound, outbound, StatsCollector(queue, 4), advice).run()  # type: ignore[arg-type]
        answers = []
        while from_engine.poll(0):
            answers.append(msgspec.msgpack.decode(from_engine.recv(), type=FromEngine))
        return answers
    finally:
        context.destroy(linger=0)


def test_a_refused_request_for_embeddings_waits_for_one_place_however_many_inputs_it_has() -> None:
    answers = run(
        Embed(request_id="first", inputs=[[1]]),
        Embed(request_id="refused", inputs=[[1]] * 30),
        prefill_tokens_per_s=5.0,
        mean_prompt_tokens=10.0,
    )

    assert [(a.request_id, a.reason, a.retry_after_s) for a in answers if isinstance(a, Rejected)] == [
        ("refused", "queue_full", 2)
    ]
    assert [output.request_id for a in answers if isinstance(a, Outputs) for output in a.items] == ["first"]
