"""The real engine process with the FakeRunner, over real sockets."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from quire_contract.kv_events import BlockStored, decode_batch, decode_frames, snapshot_request
from quire_worker.engine.messages import (
    Abort,
    ChoiceOutput,
    Fatal,
    FromEngine,
    Outputs,
    Ready,
    Rejected,
    SetDraining,
    Shutdown,
    Stats,
    Submit,
    ToEngine,
)
from quire_worker.request import SamplingParams

TIMEOUT_S = 120


class EngineUnderTest:
    """The API process's side."""

    def __init__(self, folder: Path, **fields: Any) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._push, self._pull = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
        config = {
            "model_dir": str(folder),
            "served_model_names": ["m"],
            "inbound_endpoint": f"ipc://{folder}/in",
            "outbound_endpoint": f"ipc://{folder}/out",
            "fake": True,
            "block_size": 4,
            **fields,
        }
        for socket in (self._push, self._pull):
            socket.set(zmq.LINGER, 0)
        self._push.bind(config["inbound_endpoint"])
        self._pull.bind(config["outbound_endpoint"])
        self._pull.set(zmq.RCVTIMEO, TIMEOUT_S * 1000)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quire_worker.engine"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(config).encode() + b"\n")
        self.process.stdin.flush()

    def send(self, message: ToEngine) -> None:
        self._push.send(msgspec.msgpack.encode(message))

    def receive(self) -> FromEngine:
        message: FromEngine = msgspec.msgpack.decode(self._pull.recv(), type=FromEngine)
        return message

    def receive_until(self, wanted: type[Any]) -> Any:
        while not isinstance(message := self.receive(), wanted):
            pass
        return message

    def outputs_of(self, *names: str) -> list[ChoiceOutput]:
        """All outputs until these requests' first choices have ended."""
        outputs: list[ChoiceOutput] = []
        missing = set(names)
        while missing:
            items = self.receive_until(Outputs).items
            outputs += items
            missing -= {item.request_id for item in items if item.finish_reason is not None}
        return outputs

    def submit(self, name: str, num_prompt: int = 10, max_tokens: int = 5, **fields: Any) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        prompt = list(range(num_prompt))
        self.send(Submit(request_id=name, prompt_token_ids=prompt, sampling=sampling, **fields))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT_S)
        for pipe in (self.process.stdin, self.process.stderr):
            assert pipe is not None
            pipe.close()
        self._push.close()
        self._pull.close()
        self._context.term()


Spawn = Callable[..., EngineUnderTest]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Engine processes, ended at the end of the test."""
    engines: list[EngineUnderTest] = []

    def start(**fields: Any) -> EngineUnderTest:
        engines.append(EngineUnderTest(tmp_path, **fields))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def test_requests_are_served_and_shutdown_ends_with_code_zero(spawn: Spawn) -> None:
    engine = spawn(depth=2)
    ready = engine.receive()
    assert isinstance(ready, Ready)

    engine.submit("a")
    engine.submit("b", num_prompt=30, max_tokens=3)
    outputs = engine.outputs_of("a", "b")
    engine.send(Shutdown())

    tokens = {name: [t for o in outputs if o.request_id == name for t in o.token_ids] for name in "ab"}
    assert {name: len(ids) for name, ids in tokens.items()} == {"a": 5, "b": 3}
    assert (ready.info.device, ready.info.block_size) == ("fake", 4)
    assert engine.process.wait(TIMEOUT_S) == 0


def test_bad_requests_are_rejected_and_the_next_one_is_served(spawn: Spawn) -> None:
    engine = spawn(max_model_len=64)
    engine.receive_until(Ready)

    engine.submit("long", num_prompt=64)
    rejected = engine.receive_until(Rejected)
    engine.submit("a")
    outputs = engine.outputs_of("a")

    assert (rejected.request_id, rejected.reason) == ("long", "too_long")
    assert outputs[-1].finish_reason == "length"


def test_an_aborted_request_brings_no_more_tokens(spawn: Spawn) -> None:
    engine = spawn(fake_decode_s_per_step=0.01)
    engine.receive_until(Ready)
    engine.submit("a", max_tokens=4000)
    engine.receive_until(Outputs)

    engine.send(Abort(request_id="a"))
    engine.submit("b")
    outputs = engine.outputs_of("b")
    index = next(i for i, output in enumerate(outputs) if output.request_id == "b")

    assert "a" not in {output.request_id for output in outputs[index:]}


def test_stats_come_as_a_heartbeat_and_count(spawn: Spawn) -> None:
    engine = spawn()
    engine.receive_until(Ready)
    engine.submit("a")
    engine.outputs_of("a")

    stats: Stats = engine.receive_until(Stats)
    while stats.num_generated_tokens < 5:
        stats = engine.receive_until(Stats)
    again: Stats = engine.receive_until(Stats)

    assert stats.num_prompt_tokens == 10
    assert (again.num_running, again.num_waiting) == (0, 0)
    assert again.num_free_blocks == again.num_blocks - 1


def test_the_engine_ends_within_a_second_when_its_parent_is_gone(spawn: Spawn) -> None:
    engine = spawn(fake_prefill_s_per_token=1.0)
    engine.receive_until(Ready)
    engine.submit("a", num_prompt=600)  # ten minutes' work
    assert engine.process.stdin is not None

    engine.process.stdin.close()

    assert engine.process.wait(TIMEOUT_S) == 3


def test_a_killed_parent_takes_the_engine_with_it(tmp_path: Path) -> None:
    """The parent is a process of its own, killed without a chance to tell anyone."""
    config = {
        "model_dir": str(tmp_path),
        "served_model_names": ["m"],
        "inbound_endpoint": f"ipc://{tmp_path}/in",
        "outbound_endpoint": f"ipc://{tmp_path}/out",
        "fake": True,
    }
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'quire_worker.engine'], stdin=subprocess.PIPE)\n"
        "child.stdin.write(sys.argv[1].encode() + b'\\n'); child.stdin.flush()\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    context: zmq.Context[Any] = zmq.Context()
    pull = context.socket(zmq.PULL)
    pull.bind(config["outbound_endpoint"])
    with subprocess.Popen([sys.executable, "-c", script, json.dumps(config)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert pull.poll(TIMEOUT_S * 1000)
        descriptor = os.pidfd_open(child)

        parent.send_signal(signal.SIGKILL)

        poller = zmq.Poller()
        poller.register(descriptor, zmq.POLLIN)
        ended = poller.poll(TIMEOUT_S * 1000)
    os.close(descriptor)
    pull.close()
    context.destroy(linger=0)
    assert ended


def test_signals_that_everybody_gets_are_left_to_the_parent(spawn: Spawn) -> None:
    engine = spawn()
    engine.receive_until(Ready)

    engine.process.send_signal(signal.SIGTERM)
    engine.process.send_signal(signal.SIGINT)
    engine.submit("a")

    assert engine.outputs_of("a")[-1].finish_reason == "length"


def test_a_bad_configuration_is_told_on_standard_error(spawn: Spawn) -> None:
    engine = spawn(block_sise=16)
    _, stderr = engine.process.communicate(timeout=TIMEOUT_S)

    assert engine.process.returncode == 2
    assert b"block_sise" in stderr


def test_a_model_that_cannot_be_loaded_is_told_by_a_fatal_message(spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{not json")

    engine = spawn()
    fatal = engine.receive()

    assert isinstance(fatal, Fatal)
    assert "config.json" in fatal.message
    assert engine.process.wait(TIMEOUT_S) == 1


def test_a_missing_trust_folder_is_told_by_a_fatal_message(spawn: Spawn, tmp_path: Path) -> None:
    engine = spawn(trust_dir=str(tmp_path / "nothing"), events_endpoint="tcp://127.0.0.1:0")

    fatal = engine.receive()

    assert isinstance(fatal, Fatal)
    assert "--trust-dir" in fatal.message


def test_kv_events_of_a_served_prompt_are_in_the_snapshot(spawn: Spawn) -> None:
    engine = spawn(events_endpoint="tcp://127.0.0.1:0", replay_endpoint="tcp://127.0.0.1:0", pod_name="p")
    ready: Ready = engine.receive_until(Ready)
    engine.submit("a", num_prompt=10, max_tokens=1)
    engine.outputs_of("a")
    context: zmq.Context[Any] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.set(zmq.RCVTIMEO, TIMEOUT_S * 1000)
    dealer.connect(ready.replay_endpoint)

    stored: list[BlockStored] = []
    while not stored:
        dealer.send_multipart(snapshot_request())
        while not (frame := decode_frames(dealer.recv_multipart())).is_end:
            stored += [event for event in decode_batch(frame.payload).events if isinstance(event, BlockStored)]
    dealer.close()
    context.destroy(linger=0)

    assert [len(event.block_hashes) for event in stored] == [2]
    assert ready.events_endpoint.startswith("tcp://127.0.0.1:")


def test_draining_does_not_end_what_runs(spawn: Spawn) -> None:
    engine = spawn()
    engine.receive_until(Ready)
    engine.submit("a")

    engine.send(SetDraining(draining=True))

    assert engine.outputs_of("a")[-1].finish_reason == "length"
