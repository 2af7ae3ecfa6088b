"""The router's cost and the worth of its choice: `make bench-router`.

    python bench/router.py cost    one core for the router, the other for client and mock workers, interleaved with nginx as a plain proxy,
                                   litellm and PyPI's sglang-router (cache_aware)
    python bench/router.py choice  kv_aware against round_robin, least_load and consistent_hash in front of real engines

Both print tables and write --out as JSON. Sides that are not installed are named and left out; --install makes the peers' virtual
environments in --peers (outside the repository). Run on an idle machine: cores are pinned, not reserved.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import router_choice
import router_load
import router_sides
from router_sides import MissingError, Setting, Side

CLIENT_CORE = 1
COSTS = {
    "short": "req/s, 100-byte prompts",
    "shared": "req/s, 1.1 KB, shared prefix",
    "new": "req/s, 1.1 KB, all new",
    "cpu_us": "CPU us a request (1.1 KB, shared)",
    "p50_ms": "added p50 ms",
    "p99_ms": "added p99 ms",
    "event_us": "CPU us an event",
    "streams_mib": "MiB with all streams open",
}


@contextlib.contextmanager
def mock(args: argparse.Namespace, folder: Path) -> Iterator[int]:
    """The mock workers on this process's core; yields their first port."""
    port = args.mock_port
    command = [sys.executable, str(Path(__file__).with_name("router_mock.py")), "--port", str(port)]
    command += ["--workers", str(args.workers), "--folder", str(folder)]
    process = subprocess.Popen(command)
    try:
        while not (folder / "mock.ready").exists():
            if process.poll() is not None:
                sys.exit("the mock workers did not start; is --mock-port free?")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def measure(side: Side, direct: Side | None, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Every cost of one side, once. `direct` is the first mock worker itself."""
    url, pids = f"http://127.0.0.1:{side.port}", side.pids
    seen: dict[str, float] = {}
    for kind in router_load.KINDS:
        before, started = router_load.cpu_of(pids), time.perf_counter()
        rate = router_load.wrk(url, kind, args.seconds, folder, side.headers)
        if kind == "shared":
            spent_s = router_load.cpu_of(pids) - before
            seen["cpu_us"] = spent_s / (rate.per_s * (time.perf_counter() - started)) * 1e6
        seen[kind] = rate.per_s
        seen["failed"] = seen.get("failed", 0) + rate.num_failed
    number = int(args.rate * args.seconds)
    through = asyncio.run(router_load.paced(side.port, args.rate, number, side.headers))
    straight = asyncio.run(router_load.paced(args.mock_port, args.rate, number, {}))
    seen["p50_ms"] = (through[number // 2] - straight[number // 2]) * 1e3
    seen["p99_ms"] = (through[int(number * 0.99)] - straight[int(number * 0.99)]) * 1e3
    events = asyncio.run(router_load.streams(side.port, 200, 100, 0.05, side.headers, pids))
    seen["event_us"] = events.us_per_event
    opened = asyncio.run(router_load.streams(side.port, args.streams, 4, args.streams / 400, side.headers, pids))
    seen["streams_mib"] = opened.memory_mib
    return seen


def cost(args: argparse.Namespace) -> dict[str, object]:
    """Medians over rounds; in each round every side has its turn, newly started."""
    seen: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name, mock(args, Path(name)) as port:
        folder = Path(name)
        setting = Setting(port, args.workers, folder, args.peers, args.install)
        skipped: dict[str, str] = {}
        for number in range(args.rounds):
            for side_name in args.sides:
                if side_name in skipped:
                    continue
                try:
                    with router_sides.running(side_name, setting) as side:
                        measured = measure(side, None, args, folder)
                except MissingError as error:
                    skipped[side_name] = str(error)
                    print(f"left out: {error}", file=sys.stderr)
                    continue
                seen.setdefault(side_name, []).append(measured)
                print(f"round {number + 1} {side_name}: {json.dumps(measured)}", file=sys.stderr, flush=True)
    medians = {
        side: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]} for side, rounds in seen.items()
    }
    header = ["", *medians]
    rows = [
        [title, *(f"{medians[side][key]:,.{0 if medians[side][key] >= 100 else 2}f}" for side in medians)]
        for key, title in COSTS.items()
    ]
    print(table(header, rows))
    return {"rounds": seen, "medians": medians, "left_out": skipped}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def choice(args: argparse.Namespace) -> dict[str, object]:
    """Rounds of every policy on both traces, interleaved; ratios are taken within a round."""
    seen = asyncio.run(router_choice.run(args.rounds, args.requests, args.policies, args.model, args.mock_port + 500))
    for trace in router_choice.TRACES:
        print(f"\nTrace {trace}:\n")
        print(table(*router_choice.rows(seen, trace)))
    return seen


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("cost", "choice"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    parser.add_argument("--mock-port", type=int, default=19_000, help="first of the ports used")
    parser.add_argument("--workers", type=int, default=2, help="mock workers (cost)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement (cost)")
    parser.add_argument("--rate", type=float, default=500.0, help="requests/s of the latency measurement (cost)")
    parser.add_argument("--streams", type=int, default=2000, help="open at once for the memory measurement (cost)")
    parser.add_argument("--sides", nargs="+", choices=tuple(router_sides.SIDES), default=list(router_sides.SIDES))
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "quire-bench-peers")
    parser.add_argument("--install", action="store_true", help="make the peers' environments where they are missing")
    parser.add_argument("--requests", type=int, default=240, help="in a round of a policy (choice)")
    parser.add_argument("--policies", nargs="+", choices=router_choice.POLICIES, default=list(router_choice.POLICIES))
    parser.add_argument("--model", type=Path, help="folder of the model to serve; none: the demo model (choice)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.part == "cost":
        os.sched_setaffinity(0, {CLIENT_CORE})
    seen = cost(args) if args.part == "cost" else choice(args)
    if args.out is not None:
        args.out.write_text(json.dumps(seen, indent=2) + "\n")


if __name__ == "__main__":
    main()
