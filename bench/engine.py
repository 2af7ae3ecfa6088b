"""Engine against engine, side by side: ours, transformers, and vLLM's CPU backend if --peer-python names an interpreter that has it.

All sides are processes that stay loaded; for every shape and every round each side runs once, in turn, while the others are
stopped (SIGSTOP). What counts is the median over rounds of the ratio within a round: absolute times on a shared machine mean little.
"""

import argparse
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from checkpoints import LLAMA_88M, make_random_checkpoint

HERE = Path(__file__).parent
VOCAB = 16000


@dataclass(frozen=True)
class Shape:
    """num_prompts prompts of prompt_tokens each, output_tokens generated for each."""

    num_prompts: int
    prompt_tokens: int
    output_tokens: int

    def __str__(self) -> str:
        return f"{self.num_prompts} x ({self.prompt_tokens}, {self.output_tokens})"

    @property
    def counted_tokens(self) -> int:
        """Output tokens, or prompt tokens where the shape measures prefill."""
        return self.num_prompts * (self.output_tokens if self.output_tokens > 1 else self.prompt_tokens)


SHAPES = [
    Shape(1, 16, 128),
    Shape(8, 16, 128),
    Shape(32, 16, 128),
    Shape(64, 16, 128),
    Shape(32, 256, 128),
    Shape(16, 1024, 1),
]


@dataclass
class Side:
    """A loaded engine in a process of its own, stopped while it is not its turn."""

    name: str
    command: list[str]
    env: dict[str, str]
    seconds: dict[Shape, list[float]] = field(default_factory=dict)

    def start(self, log: Path) -> float:
        """Seconds from process start to its first generated token."""
        started = time.perf_counter()
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, env=os.environ | self.env,
            start_new_session=True,
        )  # fmt: skip
        self._read(log)
        first_token_s = time.perf_counter() - started
        self._signal(signal.SIGSTOP)
        return first_token_s

    def run(self, shape: Shape, prompts: list[list[int]], log: Path) -> float:
        self._signal(signal.SIGCONT)
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"prompts": prompts, "max_tokens": shape.output_tokens}) + "\n")
        self.process.stdin.flush()
        answer = self._read(log)
        self._signal(signal.SIGSTOP)
        assert answer["tokens"] == [shape.output_tokens] * shape.num_prompts, (
            f"{self.name} generated {answer['tokens']}"
        )
        return float(answer["seconds"])  # type: ignore[arg-type]

    def stop(self) -> None:
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _read(self, log: Path) -> dict[str, object]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended; its log:\n{log.read_text()[-3000:]}")
        answer: dict[str, object] = json.loads(line)
        return answer

    def _signal(self, number: signal.Signals) -> None:
        """To the whole process group: an engine may have children."""
        os.killpg(self.process.pid, number)


def sides(model_dir: Path, threads: int, peer_python: str | None) -> list[Side]:
    one = {"OMP_NUM_THREADS": str(threads)}
    arguments = [str(model_dir), str(threads)]
    made = [
        Side(
            "quire",
            [sys.executable, str(HERE / "sides/quire_side.py"), *arguments],
            one,
        ),
        Side("transformers", [sys.executable, str(HERE / "sides/transformers_side.py"), *arguments], one),
    ]
    if peer_python:
        best = {
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_CPU_KVCACHE_SPACE": "4",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        made.append(Side("vllm", [peer_python, str(HERE / "sides/vllm_side.py"), *arguments], best))
    return made


def random_prompts(shape: Shape, rng: random.Random) -> list[list[int]]:
    return [[rng.randrange(3, VOCAB) for _ in range(shape.prompt_tokens)] for _ in range(shape.num_prompts)]


def measure(contenders: list[Side], shapes: list[Shape], rounds: int, logs: dict[str, Path]) -> None:
    rng = random.Random(0)
    for shape in shapes:
        for round_number in range(rounds + 1):  # round 0 warms up and does not count
            prompts = random_prompts(shape, rng)
            for side in contenders:
                seconds = side.run(shape, prompts, logs[side.name])
                if round_number:
                    side.seconds.setdefault(shape, []).append(seconds)
            print(f"{shape}: round {round_number}/{rounds}", file=sys.stderr, flush=True)


def table(contenders: list[Side], shapes: list[Shape]) -> str:
    ours, others = contenders[0], contenders[1:]
    header = ["prompts x (in, out)", *(f"{s.name} tok/s" for s in contenders), *(f"quire / {s.name}" for s in others)]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for shape in shapes:
        rates = [f"{shape.counted_tokens / statistics.median(s.seconds[shape]):,.0f}" for s in contenders]
        ratios = []
        for other in others:
            pairs = [theirs / mine for mine, theirs in zip(ours.seconds[shape], other.seconds[shape], strict=True)]
            ratios.append(f"**{statistics.median(pairs):.2f}x** ({min(pairs):.2f}-{max(pairs):.2f})")
        lines.append("| " + " | ".join([str(shape), *rates, *ratios]) + " |")
    return "\n".join(lines)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter of an environment with vLLM's CPU backend")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--shapes", help="indexes of the shapes to run, such as 0,3", default="")
    args = parser.parse_args()
    shapes = [SHAPES[int(i)] for i in args.shapes.split(",")] if args.shapes else SHAPES
    with tempfile.TemporaryDirectory() as folder:
        model_dir = Path(folder) / "model"
        make_random_checkpoint(model_dir, LLAMA_88M)
        contenders = sides(model_dir, args.threads, args.peer_python)
        logs = {side.name: Path(folder) / f"{side.name}.log" for side in contenders}
        started: list[Side] = []
        try:
            starts = {}
            for side in contenders:
                starts[side.name] = side.start(logs[side.name])
                started.append(side)
            measure(contenders, shapes, args.rounds, logs)
        finally:
            for side in started:
                side.stop()
    setting = f"{processor()}, {args.threads} threads; 88 M Llama shape, bf16, greedy"
    print(f"{setting}; {args.rounds} interleaved rounds, medians of per-round ratios.\n")
    print(table(contenders, shapes))
    print("\nProcess start to first token: " + ", ".join(f"{name} {s:.1f} s" for name, s in starts.items()))


if __name__ == "__main__":
    main()
