"""The engine process with a runner that hangs or breaks at the first request, as its argument says. Run by tests only."""

import re
import sys
import threading

from quire_contract.telemetry import configure_logging
from quire_worker.engine.config import EngineConfig, decode_engine_config
from quire_worker.engine.fake_model import build_fake_runner
from quire_worker.engine.parent import exit_with_parent
from quire_worker.engine.process import run_engine
from quire_worker.errors import DeviceError
from quire_worker.plan import Handle, ModelInfo, Runner, StepPlan, TokenMasks
from quire_worker.watchdog import show_stacks_on_crash


def hang_waiting() -> None:
    """As a device call that lets go of the interpreter lock."""
    threading.Event().wait()


def hang_with_the_lock() -> None:
    """One call into C that takes ages and keeps the interpreter lock."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def lose_the_device() -> None:
    """As a kernel that read where it must not: nothing that is launched afterwards runs."""
    raise DeviceError("the GPU failed during a step: an illegal memory access was encountered")


HANGS = {"waits": hang_waiting, "keeps the lock": hang_with_the_lock, "loses the device": lose_the_device}


class HangingRunner:
    """The FakeRunner until a prompt of more than one token comes: the warm-up has one."""

    def __init__(self, runner: Runner, how: str) -> None:
        self._runner = runner
        self._hang = HANGS[how]

    def launch(self, plan: StepPlan) -> Handle:
        if any(new.num_prompt_tokens > 1 for new in plan.new_rows):
            self._hang()
        return self._runner.launch(plan)

    def sample(self, handle: Handle, masks: TokenMasks | None) -> None:
        self._runner.sample(handle, masks)

    def close(self) -> None:
        self._runner.close()


def main(how: str) -> int:
    show_stacks_on_crash()
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        config = decode_engine_config(stdin.readline())
        configure_logging(process="engine")
        exit_with_parent(stdin)

        def build(config: EngineConfig) -> tuple[Runner, ModelInfo]:
            runner, info = build_fake_runner(config)
            return HangingRunner(runner, how), info

        return run_engine(config, build)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
