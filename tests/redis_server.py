"""A real Redis as a process of its own, for tests of what routers share."""

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from cluster.processes import free_ports

POLL_S = 0.01
START_S = 120


class RedisServer:
    """Started on a free port of loopback; may be stopped, frozen and started again there. Keeps nothing on disk unless told to."""

    def __init__(self, folder: Path, *, keep: bool = False) -> None:
        self._folder = folder
        self._keep = keep
        self._process: subprocess.Popen[bytes] | None = None
        (self.port,) = free_ports(1)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        binary = shutil.which("redis-server")
        assert binary, "redis-server is missing; `make test` installs it, or run: apt-get install redis-server"
        flags = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", ""]
        flags += ["--appendonly", "yes" if self._keep else "no"]
        self._process = subprocess.Popen([binary, *flags], stdout=subprocess.DEVNULL, start_new_session=True)
        until = time.monotonic() + START_S
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert time.monotonic() < until, "redis-server does not answer"
                    time.sleep(POLL_S)

    def freeze(self) -> None:
        """It holds connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(120)
            self._process = None

    def _signal(self, number: int) -> None:
        assert self._process is not None, "not started"
        self._process.send_signal(number)


@contextlib.contextmanager
def running_redis(folder: Path, *, keep: bool = False) -> Iterator[RedisServer]:
    """A server for the block."""
    server = RedisServer(folder, keep=keep)
    server.start()
    try:
        yield server
    finally:
        server.stop()
