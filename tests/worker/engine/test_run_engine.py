"""What the API process hears when the engine cannot go on; in this process, with runners that fail."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from quire_worker.engine.config import EngineConfig
from quire_worker.engine.fake_model import build_fake_runner
from quire_worker.engine.messages import Fatal, FromEngine
from quire_worker.engine.process import run_engine
from quire_worker.errors import DeviceError, LoadError
from quire_worker.plan import Handle, ModelInfo, Runner, StepPlan, TokenMasks


class RaisingRunner:
    """Every step raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def launch(self, plan: StepPlan) -> Handle:
        raise self._error

    def sample(self, handle: Handle, masks: TokenMasks | None) -> None:
        raise AssertionError("never launched")

    def close(self) -> None:
        pass


class ApiSide:
    """Receives what the engine says."""

    def __init__(self, folder: Path) -> None:
        self.config = EngineConfig(
            model_dir=str(folder),
            served_model_names=["m"],
            inbound_endpoint=f"ipc://{folder}/in",
            outbound_endpoint=f"ipc://{folder}/out",
            fake=True,
        )
        self._context: zmq.Context[Any] = zmq.Context()
        self._pull = self._context.socket(zmq.PULL)
        self._pull.bind(self.config.outbound_endpoint)
        self._pull.set(zmq.RCVTIMEO, 120_000)

    def receive(self) -> FromEngine:
        message: FromEngine = msgspec.msgpack.decode(self._pull.recv(), type=FromEngine)
        return message

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiSide]:
    side = ApiSide(tmp_path)
    yield side
    side.close()


def raising(error: Exception) -> Any:
    """A builder of runners whose every step raises."""

    def build(config: EngineConfig) -> tuple[Runner, ModelInfo]:
        _, info = build_fake_runner(config)
        return RaisingRunner(error), info

    return build


def test_a_model_that_does_not_load_is_fatal_with_its_reason(api: ApiSide) -> None:
    def build(config: EngineConfig) -> tuple[Runner, ModelInfo]:
        raise LoadError("model.safetensors: is cut short; download it again")

    code = run_engine(api.config, build)

    assert code == 1
    assert api.receive() == Fatal(message="model.safetensors: is cut short; download it again")


def test_a_first_step_that_raises_is_fatal(api: ApiSide) -> None:
    code = run_engine(api.config, raising(RuntimeError("no kernel")))

    message = api.receive()
    assert code == 1
    assert isinstance(message, Fatal)
    assert "the first step failed" in message.message
    assert "no kernel" in message.message


def test_a_broken_device_is_fatal_at_once(api: ApiSide) -> None:
    code = run_engine(api.config, raising(DeviceError("the device is lost; restart the pod")))

    assert code == 1
    assert api.receive() == Fatal(message="the device is lost; restart the pod")


def test_an_error_of_ours_is_told_and_raised(api: ApiSide) -> None:
    def build(config: EngineConfig) -> tuple[Runner, ModelInfo]:
        raise ZeroDivisionError("oops")

    with pytest.raises(ZeroDivisionError):
        run_engine(api.config, build)

    message = api.receive()
    assert isinstance(message, Fatal)
    assert "ZeroDivisionError" in message.message
