"""What a worker's start takes phase by phase, and what sleeping and waking take and give: one process at a time, by its own report.

    python bench/cold_start.py MODEL_FOLDER [--starts 5] [--sleeps 5] [-- FLAGS OF quire-worker]

Each start is a new process with the files in the page cache; the first token is of a prompt of one word right after ready. Before each
sleep the KV pool is filled by prompts, so that there is something to give back; the same request, seeded, is answered before and after it.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from quire_contract import names
from quire_contract.startup_report import StartupReport, decode_startup

PORT = 18231
BASE = f"http://127.0.0.1:{PORT}"
PHASES = ("process_s", "weights_s", "engine_s", "ready_s", "first_token_s")
PAUSE_S = 0.01
MAX_START_S = 300.0
BODY = {"model": "m", "prompt": "Hello", "max_tokens": 16, "temperature": 1.0, "seed": 5, "logprobs": 1}


class Worker:
    """One process on the loopback."""

    def __init__(self, model: Path, flags: list[str]) -> None:
        command = [sys.executable, "-m", "quire_worker", "--model", str(model), "--served-model-name", "m"]
        self.process = subprocess.Popen([*command, "--port", str(PORT), "--log-level", "error", *flags])

    def until_ready(self) -> None:
        end_s = time.monotonic() + MAX_START_S
        while time.monotonic() < end_s and self.process.poll() is None:
            try:
                if ask("GET", names.PATH_READY)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(PAUSE_S)
        raise SystemExit("the worker does not become ready")

    def engine_bytes(self) -> dict[str, int]:
        """PSS and own memory of the engine's process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        lines = Path(f"/proc/{children[0]}/smaps_rollup").read_text().splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        return {"pss": found["Pss"], "anonymous": found["Anonymous"]}

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def ask(method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    """Status and content."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        BASE + path, data=data, method=method, headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def startup() -> StartupReport:
    return decode_startup(ask("GET", names.PATH_STARTUP)[1])


def complete(body: Any = BODY) -> Any:
    status, content = ask("POST", names.PATH_COMPLETIONS, body)
    assert status == 200, content
    return json.loads(content)["choices"]


def start_once(model: Path, flags: list[str]) -> StartupReport:
    worker = Worker(model, flags)
    try:
        worker.until_ready()
        complete(BODY | {"max_tokens": 1})
        return startup()
    finally:
        worker.stop()


def sleep_and_wake(model: Path, flags: list[str], num_sleeps: int, num_prompts: int) -> list[dict[str, float]]:
    """One row for each sleep."""
    worker = Worker(model, flags)
    rows = []
    try:
        worker.until_ready()
        before = complete()
        for turn in range(num_sleeps):
            for number in range(num_prompts):
                text = " ".join(str(turn * 10**6 + number * 10**3 + word) for word in range(120))
                complete(BODY | {"prompt": text, "max_tokens": 1})
            awake = worker.engine_bytes()
            slept = json.loads(ask("POST", names.PATH_SLEEP)[1])
            asleep = worker.engine_bytes()
            began_s = time.perf_counter()
            woken = json.loads(ask("POST", names.PATH_WAKE)[1])
            answered_s = time.perf_counter() - began_s
            assert complete() == before, "the answer differs after a sleep"
            rows.append(
                {
                    "sleep_s": slept["time_s"],
                    "wake_s": woken["time_s"],
                    "wake_call_s": answered_s,
                    "first_answer_s": time.perf_counter() - began_s,
                    "given_mb": slept["size_bytes"] / 1e6,
                    "pss_awake_mb": awake["pss"] / 1e6,
                    "pss_asleep_mb": asleep["pss"] / 1e6,
                }
            )
        return rows
    finally:
        worker.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--sleeps", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=20)
    own, _, flags = " ".join(sys.argv[1:]).partition(" -- ")
    args = parser.parse_args(own.split(), argparse.Namespace(flags=flags.split()))
    reports = [start_once(args.model, args.flags) for _ in range(args.starts)]
    print("| phase | median, s | least | most |\n| --- | --- | --- | --- |")
    for phase in PHASES:
        show(phase.removesuffix("_s"), [getattr(report, phase) for report in reports])
    detail = reports[0].detail_s
    for name in detail:
        show(f"... {name}", [report.detail_s[name] for report in reports])
    speed = statistics.median(report.weights_bytes_per_s for report in reports)
    print(f"\nweights {reports[0].weights_bytes / 1e6:.1f} MB, {speed / 1e6:.0f} MB/s\n")
    rows = sleep_and_wake(args.model, args.flags, args.sleeps, args.prompts)
    print("| | median | least | most |\n| --- | --- | --- | --- |")
    for name in rows[0]:
        show(name, [row[name] for row in rows])


def show(name: str, figures: list[float]) -> None:
    print(f"| {name} | {statistics.median(figures):.4f} | {min(figures):.4f} | {max(figures):.4f} |")


if __name__ == "__main__":
    main()
