"""A side of a benchmark: a process group that is stopped while it is not its turn, and what it costs in memory."""

import argparse
import contextlib
import fcntl
import json
import os
import platform
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

import msgspec
import psutil

ANSWER_TIMEOUT_S = 900.0
_VLLM_QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def vllm_env(threads: int, kv_gib: int, work: Path) -> dict[str, str]:
    """vLLM's best setting on a CPU: its default leaves the model all cores but one. Compiled code is kept below `work`."""
    return _VLLM_QUIET | {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
        "VLLM_CACHE_ROOT": str(work / "vllm-cache"),
    }


def end_on_signals() -> None:
    """SIGTERM, as Ctrl-C, ends the benchmark after its sides; further ones are ignored, so that none of those is left behind."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for ignored in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ignored, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


class SideError(Exception):
    """A side ended or answered nothing in time; the message has the end of its log."""


@dataclass(frozen=True)
class Memory:
    """Of all processes of a side, in MiB."""

    pss: float
    """Each page divided by the number of processes that map it: those of other sides too, if they use the same libraries."""
    rss: float
    """Each page counted in every process that maps it: never less than what the side would need alone."""


class ProcessTree:
    """A process, which leads a session of its own, and all that descend from it."""

    def __init__(self, process: subprocess.Popen[str], name: str, log: Path) -> None:
        self.process, self.name, self._log = process, name, log

    def members(self) -> list[psutil.Process]:
        """Those alive, the leader first."""
        try:
            leader = psutil.Process(self.process.pid)
            return [leader, *leader.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def pause(self) -> None:
        """Stop all, so that they take no processor time."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let all go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End all and wait for the leader."""
        members = self.members()
        self._signal(signal.SIGKILL)
        psutil.wait_procs(members[1:], timeout=10)
        self.process.wait(timeout=30)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def memory(self) -> Memory:
        """Now. Stopped processes can be read, too."""
        pss = rss = 0
        for member in self.members():
            with contextlib.suppress(OSError):  # it ended meanwhile
                lines = Path(f"/proc/{member.pid}/smaps_rollup").read_text().splitlines()
                kib = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines[1:])}
                pss, rss = pss + kib["Pss"], rss + kib["Rss"]
        return Memory(pss=pss / 1024, rss=rss / 1024)

    def processor_s(self) -> float:
        """Processor time of those alive so far, in seconds."""
        spent = 0.0
        for member in self.members():
            with contextlib.suppress(psutil.Error):
                times = member.cpu_times()
                spent += times.user + times.system
        return spent

    def failure(self, what: str) -> SideError:
        """To raise."""
        return SideError(f"{self.name} {what}; its log ends:\n{self._log.read_text()[-3000:]}")

    def _signal(self, number: signal.Signals) -> None:
        for member in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)


def vllm_in_one_process(python: Path, threads: int) -> dict[str, str]:
    """Its engine inside the caller: two processes fewer that poll for each other, and on few cores faster (only LLM() can do this).

    The OpenMP library that it preloads into its worker processes has to be named, and the number of threads.
    """
    library = python.absolute().parent.parent / "lib/libiomp5.so"
    preload = {"LD_PRELOAD": str(library)} if library.exists() else {}
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(threads)} | preload


def env_pair(text: str) -> tuple[str, str]:
    """NAME=VALUE of a command line."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def start_tree(name: str, command: list[str], env: dict[str, str], log: Path, *, pipes: bool) -> ProcessTree:
    """Standard error goes to `log`; standard input and output are pipes, or nothing and `log`. It runs in the log's folder."""
    # The repository's root must be on nobody's path, and a script's own folder on its.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else file,
            stderr=file,
            text=True,
            env=inherited | env,
            cwd=log.parent,
            start_new_session=True,
        )
    return ProcessTree(process, name, log)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a side says about one request."""

    seconds: float
    tokens: list[int]
    decode_seconds: float
    decode_tokens: int


class Side:
    """An engine that answers the requests of sides/protocol.py."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], log: Path) -> None:
        self.name, self._command, self._env, self._log = name, command, env, log
        self._tree: ProcessTree | None = None

    def start(self) -> float:
        """Start and stop after the first generated token; seconds from process start to that token."""
        started = time.perf_counter()
        self._tree = start_tree(self.name, self._command, self._env, self._log, pipes=True)
        try:
            self._read()
        except SideError:
            self.kill()
            raise
        seconds = time.perf_counter() - started
        self._tree.pause()
        return seconds

    def ask(self, prompts: list[list[int]], max_tokens: int, decode_only: bool) -> Answer:
        """Go on, answer, stop. SideError if a prompt got another number of tokens than asked for."""
        assert self._tree is not None and self._tree.process.stdin is not None
        self._tree.resume()
        request = {"prompts": prompts, "max_tokens": max_tokens, "decode_only": decode_only}
        self._tree.process.stdin.write(json.dumps(request) + "\n")
        self._tree.process.stdin.flush()
        answer = msgspec.convert(self._read(), Answer)
        self._tree.pause()
        if answer.tokens != [max_tokens] * len(prompts):
            raise SideError(f"{self.name} generated {answer.tokens}, not {max_tokens} for each of {len(prompts)}")
        return answer

    def memory(self) -> Memory:
        """Of a side that was started."""
        assert self._tree is not None
        return self._tree.memory()

    def processor_s(self) -> float:
        """Processor time it has taken since it was started."""
        return 0.0 if self._tree is None else self._tree.processor_s()

    def kill(self) -> None:
        """End it, if it was started."""
        if self._tree is not None:
            self._tree.kill()
            self._tree = None

    def _read(self) -> dict[str, object]:
        assert self._tree is not None and self._tree.process.stdout is not None
        out = self._tree.process.stdout
        if not select.select([out], [], [], ANSWER_TIMEOUT_S)[0]:
            raise self._tree.failure(f"said nothing for {ANSWER_TIMEOUT_S:.0f} s")
        line = out.readline()
        if not line:
            raise self._tree.failure("ended")
        answer: dict[str, object] = json.loads(line)
        return answer


class TakesTime(Protocol):
    """Something of the benchmark that runs."""

    def processor_s(self) -> float:
        """Processor time so far, in seconds."""
        ...


class Bystanders:
    """How much of the processors goes to processes that have nothing to do with the benchmark."""

    def __init__(self, sides: Iterable[TakesTime]) -> None:
        self._sides = list(sides)
        self._began, self._busy = time.perf_counter(), self._busy_s()

    def share(self) -> float:
        """Of all processors' time since construction, 0 to 1; what a hypervisor took away counts too."""
        wall = (time.perf_counter() - self._began) * (psutil.cpu_count() or 1)
        return max(0.0, (self._busy_s() - self._busy) / wall)

    def _busy_s(self) -> float:
        machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
        busy = sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice
        return float(busy - own.user - own.system - sum(side.processor_s() for side in self._sides))


def wait_until_quiet(max_share: float, timeout_s: float) -> None:
    """Return when others took no more than `max_share` of the processors for two seconds, or after `timeout_s`. No side may run."""
    deadline = time.perf_counter() + timeout_s
    while time.perf_counter() < deadline:
        bystanders = Bystanders([])
        time.sleep(2)
        if bystanders.share() <= max_share:
            return


@contextlib.contextmanager
def machine_lock(path: Path | None) -> Iterator[None]:
    """Hold the lock file, if one is named, so that other benchmarks on this machine wait for their turn."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def processor() -> str:
    """Its name, and what of its instructions matters here."""
    info = Path("/proc/cpuinfo").read_text()
    fields = dict(line.partition(":")[::2] for line in info.splitlines())
    named = next((v.strip() for k, v in fields.items() if k.strip() == "model name"), platform.processor())
    flags = next((v.split() for k, v in fields.items() if k.strip() == "flags"), [])
    extensions = [shown for flag, shown in (("avx512_bf16", "AVX512-BF16"), ("amx_bf16", "AMX-BF16")) if flag in flags]
    return ", ".join([named, *extensions])
