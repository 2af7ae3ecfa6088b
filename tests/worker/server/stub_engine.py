"""A stand-in for the engine process that misbehaves as its argument says. Speaks engine.messages; run by tests only."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from quire_worker.engine.messages import Fatal, Outputs, Ready, Rejected, Shutdown, Stats, Submit, ToEngine
from quire_worker.plan import KVGroup, ModelInfo
from quire_worker.request import ChoiceOutput

READ, UNREAD = 70, 71
"""Tokens."""
INFO = ModelInfo(
    vocab_size=300,
    max_model_len=512,
    num_blocks=64,
    block_size=16,
    groups=[KVGroup(num_layers=1)],
    device="stub",
    dtype="none",
)
STATS = Stats(
    num_steps=1, num_running=1, num_waiting=0, num_free_blocks=60, num_blocks=64, num_preemptions=0, num_prompt_tokens=0,
    num_cached_tokens=0, num_generated_tokens=0, prefix_queries=0, prefix_hits=0,
)  # fmt: skip


def main(behaviour: str) -> int:
    config = msgspec.json.decode(sys.stdin.buffer.readline())
    context = zmq.Context()
    inbound, outbound = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    inbound.connect(config["inbound_endpoint"])
    outbound.connect(config["outbound_endpoint"])

    def send(message: Any) -> None:
        outbound.send(msgspec.msgpack.encode(message))

    if behaviour == "fatal at start":
        send(Fatal(message="/models/tiny/model.safetensors: missing; download the checkpoint again"))
        outbound.close()
        context.term()
        return 1
    if behaviour == "exits at start":
        return 5
    if behaviour == "never ready":
        sys.stdin.buffer.read()
        return 0
    send(Ready(info=INFO, epoch="stub"))
    send(STATS)
    first: Submit | None = None
    while True:
        message = msgspec.msgpack.decode(inbound.recv(), type=ToEngine)
        if isinstance(message, Shutdown):
            return 0
        if not isinstance(message, Submit):
            continue
        if behaviour == "tells who reads":
            send(Outputs(items=as_read(message)))
        elif behaviour == "queue full":
            send(Rejected(request_id=message.request_id, reason="queue_full", message="64 requests are waiting"))
        elif first is None:
            first = message
            send(Outputs(items=[ChoiceOutput(request_id=message.request_id, choice=0, token_ids=[70])]))
        else:
            misbehave(behaviour, [first, message], send)


def as_read(submit: Submit) -> list[ChoiceOutput]:
    """Up to two tokens for each choice, which say whether they are read as they come."""
    token = READ if submit.is_streamed else UNREAD
    num_left = 2 - len(submit.output_token_ids)
    return [
        ChoiceOutput(
            request_id=submit.request_id,
            choice=choice,
            token_ids=[token],
            finish_reason="length" if number == num_left - 1 else None,
        )
        for choice in range(submit.n)
        for number in range(num_left)
    ]


def misbehave(behaviour: str, submits: list[Submit], send: Callable[[Any], None]) -> None:
    """What a second request brings about, while the first streams."""
    if behaviour == "fails requests":
        send(Outputs(items=[failed(submit) for submit in submits]))
    elif behaviour == "blames grammars":
        send(Outputs(items=[failed(submit, "takes too long", "grammar") for submit in submits]))
    elif behaviour == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "is fatal":
        send(Fatal(message="the device is lost; restart"))
    elif behaviour == "speaks nonsense":
        send("nonsense")


def failed(submit: Submit, error: str = "secret insides", code: str | None = None) -> ChoiceOutput:
    return ChoiceOutput(
        request_id=submit.request_id, choice=0, token_ids=[], finish_reason="error", error=error, error_code=code
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
