"""A worker as a real process, for the tests that bring other people's clients."""

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "models" / "quire-demo"
START_S = 240


@dataclass(frozen=True)
class Server:
    """A ready worker."""

    base: str
    """http://127.0.0.1:port"""
    model_dir: Path
    pid: int
    model: str = "demo"

    @property
    def v1(self) -> str:
        return f"{self.base}/v1"


@contextlib.contextmanager
def serve(model_dir: Path, *flags: str) -> Iterator[Server]:
    """A worker process for the block. Fails with its log if it does not get ready."""
    command = [
        sys.executable,
        "-m",
        "quire_worker",
        "--model",
        str(model_dir),
        "--served-model-name",
        "demo",
        "--port",
        "0",
    ]
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True, start_new_session=True)
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if "event=ready" in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        ready.wait(START_S)
        port = re.search(r"event=listening .*port=(\d+)", "".join(lines))
        assert port and "event=ready" in "".join(lines), "the worker does not get ready:\n" + "".join(lines)
        yield Server(f"http://127.0.0.1:{port[1]}", model_dir, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        reader.join(120)
        assert process.stderr is not None
        process.stderr.close()
