"""A process of its own in which grammars are tried first, because llguidance compiles some into a crash, or for ever, or into all memory:
what ends there ends nothing else. Any thread may use one, one at a time.

    stdin    the configuration, one JSON line; then texts      each a msgpack string behind its length, 4 bytes, big endian
    stdout   "" when ready; then for each text what is wrong with it, or ""     in the same frames
"""

import contextlib
import os
import select
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec

from quire_worker.grammar.limits import GrammarLimits

_COMMAND = (sys.executable, "-m", "quire_worker.grammar")
_LENGTH = struct.Struct(">I")
_BUSY_SHARE = 0.2
"""Of the time limit. Who did not get to compute for so long says nothing about the grammar."""


class TrialConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the process is told."""

    model_dir: str
    vocab_size: int
    memory_bytes: int


class TrialBrokenError(Exception):
    """The process cannot be had. The message says why; it is no fault of the grammar's."""


class Trial:
    """Starts the process when it is first needed, and again after it ended."""

    def __init__(self, folder: Path, vocab_size: int, limits: GrammarLimits) -> None:
        self._config = TrialConfig(
            model_dir=str(folder), vocab_size=vocab_size, memory_bytes=limits.compile_memory_bytes
        )
        self._limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def refusal_of(self, text: str) -> str | None:
        """What is wrong with the grammar, in llguidance's words or ours; None if nothing is. Raises TrialBrokenError."""
        process = self._running()
        begun_s = _cpu_time_s(process.pid)
        try:
            _send(process, text)
            found = _receive(process, self._limits.compile_time_s)
        except TimeoutError:
            computed_s = _cpu_time_s(process.pid) - begun_s
            self._end()
            if computed_s < _BUSY_SHARE * self._limits.compile_time_s:
                raise TrialBrokenError("the machine is too busy to try the grammar; send the request again") from None
            return f"takes longer than {self._limits.compile_time_s:g} s to compile; make it smaller or simpler"
        except (EOFError, OSError):
            self._end()
            if self._is_closed:
                raise TrialBrokenError("the engine is shutting down") from None
            return "is too deeply nested or needs too much memory to compile; make it smaller or simpler"
        return found or None

    def close(self) -> None:
        """End the process, whatever it does. May be called from another thread than the one that waits for it."""
        self._is_closed = True
        self._end()

    def _running(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._is_closed:
                raise TrialBrokenError("the engine is shutting down")
            if self._process is not None:
                return self._process
            process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._process = process
        try:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(self._config) + b"\n")
            process.stdin.flush()
            problem = _receive(process, self._limits.load_time_s)
        except (TimeoutError, EOFError, OSError) as error:
            self._end()
            raise TrialBrokenError(f"grammars cannot be tried: {type(error).__name__}") from None
        if problem:
            self._end()
            raise TrialBrokenError(problem)
        return process

    def _end(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _cpu_time_s(pid: int) -> float:
    """What the process has computed; 0 if it is gone."""
    try:
        # The name, in brackets, may hold anything: fields are counted from behind it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _send(process: "subprocess.Popen[bytes]", text: str) -> None:
    assert process.stdin is not None
    frame = msgspec.msgpack.encode(text)
    process.stdin.write(_LENGTH.pack(len(frame)) + frame)
    process.stdin.flush()


def _receive(process: "subprocess.Popen[bytes]", timeout_s: float) -> str:
    """Raises TimeoutError, or EOFError if the process ended."""
    assert process.stdout is not None
    ends_s, fd = time.monotonic() + timeout_s, process.stdout.fileno()
    (length,) = _LENGTH.unpack(_read(fd, _LENGTH.size, ends_s))
    return msgspec.msgpack.decode(_read(fd, length, ends_s), type=str)


def _read(fd: int, size: int, ends_s: float) -> bytes:
    data = b""
    while len(data) < size:
        ready, _, _ = select.select([fd], [], [], max(0.0, ends_s - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(fd, size - len(data))
        if not part:
            raise EOFError
        data += part
    return data
