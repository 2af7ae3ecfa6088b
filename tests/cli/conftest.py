"""A stand-in for this installation: a folder with small `quire-worker` and `quire-router` programs, and `quire` run against it.

The stand-ins are real processes that answer probes; what a worker does otherwise is told by its model folder's config.json, as it
starts; whether it is ready, whenever it is asked.
"""

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.files import put

WORKER = """
import argparse, http.server, json, os, pathlib, signal, subprocess, sys, threading

parser = argparse.ArgumentParser()
for flag in ("model", "host", "port", "health-port", "pod-name", "trust-dir", "kv-events-endpoint", "compute-threads"):
    parser.add_argument("--" + flag, required=True)
arguments, _ = parser.parse_known_args()
told = pathlib.Path(arguments.model) / "config.json"
behaviour = json.loads(told.read_text())
if "say" in behaviour:
    print(behaviour["say"], flush=True)
if "exit" in behaviour:
    sys.exit(behaviour["exit"])
assert (pathlib.Path(arguments.trust_dir) / "token").read_text()
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])  # an engine process
print("threads", arguments.compute_threads, "pod", arguments.pod_name, flush=True)
if behaviour.get("ignore_term"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: (print("drained", flush=True), os._exit(0)))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        is_ready = json.loads(told.read_text()).get("not_ready") not in ("any", arguments.pod_name)
        self.send_response(200 if is_ready or self.path != "/ready" else 503)
        self.end_headers()
        self.wfile.write(json.dumps(dict(os.environ)).encode())

    def log_message(self, *_):
        pass


probes = http.server.ThreadingHTTPServer((arguments.host, int(arguments.health_port)), Handler)
threading.Thread(target=probes.serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer((arguments.host, int(arguments.port)), Handler).serve_forever()
"""

ROUTER = """
import argparse, http.server, json, os, pathlib, signal, threading

parser = argparse.ArgumentParser()
flags = ["config", "release", "host", "port", "trust-dir", "shutdown-delay", "shutdown-timeout"]
for flag in (*flags, "admin-host", "admin-port", "admin-token-file", "state-dir"):
    parser.add_argument("--" + flag, required=True)
arguments = parser.parse_args()
admin_token = pathlib.Path(arguments.admin_token_file).read_text()
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        config = json.loads(pathlib.Path(arguments.config).read_text())
        body = {"ready_endpoints": len(config["endpoints"]), "config": config, "environ": dict(os.environ)}
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


class Admin(Handler):
    def do_GET(self):
        allowed = self.headers["Authorization"] == "Bearer " + admin_token
        body = {"data": [{"day": "2026-11-21", "requests": 2, "cost": "0.10"}], "asked": self.path}
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


admin = http.server.ThreadingHTTPServer((arguments.admin_host, int(arguments.admin_port)), Admin)
threading.Thread(target=admin.serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer((arguments.host, int(arguments.port)), Handler).serve_forever()
"""

DRIVER = """
import os, pathlib, sys
from quire_cli.app import run_command
from quire_cli.host import Host

host = Host(environ=dict(os.environ), python=pathlib.Path(sys.argv[1]) / "python")
sys.exit(run_command(host, sys.argv[2:]))
"""


class Command:
    """A running `quire`, with its output line by line."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.output = ""
        self._seen = 0

    def wait_for(self, pattern: str, timeout_s: float = 120.0) -> "re.Match[str]":
        """The first match of `pattern` after the last one that was waited for."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while not (match := re.compile(pattern).search(self.output, self._seen)):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert chunk, f"no {pattern!r} in:\n{self.output}"
            self.output += chunk.decode()
        self._seen = match.end()
        return match

    def end(self, timeout_s: float = 120.0) -> int:
        """Waits for the end; the exit code."""
        rest, _ = self.process.communicate(timeout=timeout_s)
        self.output += rest.decode()
        return self.process.returncode

    def children(self) -> list[psutil.Process]:
        """Every process below it now."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def pid_of(self, pod: str) -> int:
        """The last process id that was told for a pod."""
        return int(re.findall(rf"{pod}: starting \(pid (\d+)\)", self.output)[-1])


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """A folder with the stand-ins."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in (("quire-worker", WORKER), ("quire-router", ROUTER)):
        script = folder / name
        script.write_text(f"#!{sys.executable} -S\n{body}")
        script.chmod(0o755)
    return folder


@pytest.fixture
def quire(bin_dir: Path, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts `quire` with the given arguments; whatever is left of it is killed at the end."""
    started: list[Command] = []
    (tmp_path / "tmp").mkdir()
    environ = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path / "tmp"), "SECRET_OF_THE_SHELL": "x"}
    environ.pop("XDG_CACHE_HOME", None)

    def start(*arguments: str, **variables: str) -> Command:
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(bin_dir), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environ, **variables},
            cwd=tmp_path,
        )
        started.append(Command(process))
        return started[-1]

    yield start
    for command in started:
        if command.process.poll() is None:
            family = command.children()
            command.process.kill()
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        command.process.communicate()


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    """Writes an InferenceService `demo` whose model folder tells the stand-in worker what to do."""

    def write(spec: str = "replicas: 2", **behaviour: Any) -> Path:
        model = tmp_path / "models" / "demo"
        model.mkdir(parents=True, exist_ok=True)
        put(model / "config.json", json.dumps(behaviour))
        file = tmp_path / "demo.yaml"
        lines = [
            "apiVersion: quire.dev/v1alpha1",
            "kind: InferenceService",
            "metadata:",
            "  name: demo",
            "spec:",
            "  model:",
            "    uri: file:models/demo",
            *(f"  {line}" for line in spec.splitlines()),
        ]
        put(file, "\n".join(lines) + "\n")
        return file

    return write
