"""Structured output: whether answers match their schemas, and what a grammar costs a token.

    python bench/structured.py generations [--count 2000]    20 schemas, a random and the demo model, temperature 1, through the server
    python bench/structured.py overhead                      32 constrained rows against 32 free ones, step by step in turn, in the engine

`generations` fails if an answer that ended by itself does not parse and validate, or if more than 1 % end in "length".
"""

import argparse
import asyncio
import collections
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
from checkpoints import LLAMA_88M, Sizes, make_random_checkpoint, work_folder, write_tokenizer
from side import machine_lock, processor

from quire_contract.openai.structured import lark_of_schema
from quire_worker.engine.config import EngineConfig
from quire_worker.engine.engine import Engine
from quire_worker.engine.process import build_scheduler
from quire_worker.execution.build import build_runner
from quire_worker.execution.options import RunnerOptions
from quire_worker.grammar.matcher import CompiledGrammar
from quire_worker.grammar.tokenizer import load_grammar_tokenizer
from quire_worker.request import SamplingParams, Submit

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "models" / "quire-demo"
SCHEMAS: list[dict[str, Any]] = json.loads((ROOT / "bench" / "structured_schemas.json").read_text())
MAX_TOKENS = 800
ROWS, TOKENS = 32, 160
MAX_LENGTH_SHARE = 0.01
RANDOM = Sizes(
    vocab_size=1536,
    hidden_size=128,
    intermediate_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    max_position=2048,
)
LONG_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
            "colour": {"enum": ["red", "green", "blue"]},
        },
        "required": ["name", "age", "tags", "colour"],
        "additionalProperties": False,
    },
    "minItems": 1000,
}
"""Nothing that matches it ends before TOKENS tokens."""


@contextmanager
def served(model: Path) -> Iterator[str]:
    """The address of a worker, while entered."""
    flags = (
        "--served-model-name",
        "m",
        "--port",
        "0",
        "--device",
        "cpu",
        "--max-model-len",
        "1024",
        "--disable-log-requests",
    )
    command = [sys.executable, "-m", "quire_worker", "--model", str(model), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port, log = "", []
        try:
            for line in process.stderr:
                log.append(line)
                port = port or (found[1] if (found := re.search(r"event=listening .*port=(\d+)", line)) else "")
                if "event=ready" in line:
                    break
            else:
                sys.exit("".join(log))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.stderr.read()


async def generate(base: str, count: int, concurrency: int) -> collections.Counter[str]:
    """How `count` generations ended, schemas in turn; sys.exit at the first wrong one."""
    ends: collections.Counter[str] = collections.Counter()
    gate = asyncio.Semaphore(concurrency)

    async def one(session: aiohttp.ClientSession, seed: int) -> None:
        schema = SCHEMAS[seed % len(SCHEMAS)]
        wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": f"Give me {schema['title']} number {seed}."}],
            "response_format": wanted,
            "temperature": 1,
            "top_p": 1,
            "seed": seed,
            "max_tokens": MAX_TOKENS,
        }
        async with gate, session.post(f"{base}/v1/chat/completions", json=body) as response:
            answer = await response.json()
        if response.status != 200:
            sys.exit(f"seed {seed}, {schema['title']}: {response.status} {answer}")
        choice = answer["choices"][0]
        if choice["finish_reason"] == "stop":
            try:
                jsonschema.validate(json.loads(choice["message"]["content"]), schema)
            except (ValueError, jsonschema.ValidationError) as error:
                sys.exit(f"seed {seed}, {schema['title']}: {error}: {choice['message']['content']!r}")
        ends[choice["finish_reason"]] += 1
        ends["tokens"] += answer["usage"]["completion_tokens"]

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
        await asyncio.gather(*(one(session, seed) for seed in range(count)))
    return ends


def generations(args: argparse.Namespace) -> None:
    with work_folder(None) as folder:
        make_random_checkpoint(folder / "random", RANDOM)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
            if (DEMO / name).exists():
                shutil.copy(DEMO / name, folder / "random" / name)
        too_long = False
        for name, model in (("random", folder / "random"), ("demo", DEMO)):
            count = args.count // 2
            start = time.perf_counter()
            with served(model) as base:
                ends = asyncio.run(generate(base, count, args.concurrency))
            share = ends["length"] / count
            too_long |= share > MAX_LENGTH_SHARE
            print(
                f"{name} model: {count} generations, {ends['stop']} stop (all parse and validate), {ends['length']} length "
                f"({100 * share:.1f} %), {ends['tokens'] / count:.0f} tokens each, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
        if too_long:
            sys.exit(f"more than {100 * MAX_LENGTH_SHARE:.0f} % ended in length")


class Batch:
    """An engine that decodes ROWS rows, constrained or free."""

    def __init__(self, model: Path, threads: int, grammar: CompiledGrammar | None) -> None:
        options = RunnerOptions(
            model_dir=model, device="cpu", compute_threads=threads, max_model_len=512, max_num_seqs=ROWS,
            num_gpu_blocks_override=2048,
        )  # fmt: skip
        runner, info = build_runner(options)
        config = EngineConfig(
            model_dir=str(model), served_model_names=["m"], inbound_endpoint="", outbound_endpoint="", max_num_seqs=ROWS
        )
        self._engine = Engine(build_scheduler(config, info), runner)
        self._grammar = grammar
        self.step_s: list[float] = []
        self.processor_s = 0.0

    def begin(self, seed: int) -> None:
        """Prefill; every row ends after TOKENS tokens."""
        scheduler = self._engine.scheduler
        for row in range(ROWS):
            sampling = SamplingParams(
                max_tokens=TOKENS, seed=seed * ROWS + row, eos_token_ids=(2,), ignore_eos=self._grammar is None
            )
            prompt = [3 + (row * 31 + i * 7) % 15_000 for i in range(16)]
            refused = scheduler.add(Submit(request_id=f"r{row}", prompt_token_ids=prompt, sampling=sampling))
            assert refused is None
            if self._grammar is not None:
                scheduler.constrain(f"r{row}", [self._grammar.new_matcher()])
        self._engine.step()

    def step(self) -> bool:
        """One step of all rows, timed; False when they have ended."""
        if not self._engine.scheduler.has_work:
            return False
        start, used = time.perf_counter(), time.process_time()
        outputs = self._engine.step()
        self.step_s.append(time.perf_counter() - start)
        self.processor_s += time.process_time() - used
        assert len(outputs) == ROWS
        assert {output.finish_reason for output in outputs} <= {None, "length"}
        return True


def overhead(args: argparse.Namespace) -> None:
    with work_folder(args.work) as folder:
        model = folder / "88m-text"
        make_random_checkpoint(model, LLAMA_88M)
        write_tokenizer(model, LLAMA_88M.vocab_size)
        tokenizer = load_grammar_tokenizer(model, LLAMA_88M.vocab_size)
        constrained = Batch(model, args.threads, CompiledGrammar(lark_of_schema(LONG_SCHEMA), tokenizer))
        free = Batch(model, args.threads, None)
        ratios = []
        for number in range(args.rounds + 1):  # the first one warms up
            for batch in (constrained, free):
                batch.step_s, batch.processor_s = [], 0.0
                batch.begin(number)
            with machine_lock(args.lock):
                while constrained.step() and free.step():
                    pass
                free.step()
            medians = [statistics.median(batch.step_s) * 1e3 for batch in (constrained, free)]
            ratio = statistics.median(c / f for c, f in zip(constrained.step_s, free.step_s, strict=False))
            used = [batch.processor_s / len(batch.step_s) * 1e3 for batch in (constrained, free)]
            if number:
                ratios.append(ratio)
                print(
                    f"round {number}: constrained {medians[0]:.2f} ms a step, free {medians[1]:.2f}, ratio {ratio:.3f}, "
                    f"processor time {used[0]:.1f} ms and {used[1]:.1f}, ratio {used[0] / used[1]:.3f}",
                    flush=True,
                )
    print(f"{processor()}, {args.threads} threads; {ROWS} rows, {TOKENS} tokens each, temperature 1")
    print(f"median ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    counted = commands.add_parser("generations")
    counted.add_argument("--count", type=int, default=2000, help="over both models [2000]")
    counted.add_argument("--concurrency", type=int, default=32)
    timed = commands.add_parser("overhead")
    timed.add_argument("--rounds", type=int, default=5)
    timed.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    timed.add_argument("--work", type=Path, help="folder for the model, kept [a temporary one]")
    timed.add_argument("--lock", type=Path, help="file to lock while measuring, a round at a time")
    args = parser.parse_args()
    generations(args) if args.command == "generations" else overhead(args)


if __name__ == "__main__":
    main()
