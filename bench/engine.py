"""Engine against engine, side by side: ours, and vLLM's CPU backend if --peer-python names an interpreter that has it.

All sides are processes that stay loaded; for every row and every round each side runs once, in turn, while all processes of the others are
stopped (SIGSTOP). What counts is the median over rounds of the ratio within a round: absolute times on a shared machine mean
little. One side is no engine but the bound: the linear layers alone (sides/linear_side.py). vLLM runs in one process, which on few cores
is faster than its default of three; that default is the side vllm-mp.

Rows (--rows): 1, 8, 32, 64 (so many requests of 16 tokens in, 128 out), 32x256 (256 in, 128 out), prefill (16 x 1,024 in, 1 out; counts
prompt tokens), context (2 x 4,096 in; counts only the steps in which both decode).
"""

import argparse
import json
import os
import random
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from checkpoints import make_random_checkpoint, work_folder
from report import BOUND, OURS, QUANTIZED, Results, Round, cost_table, row_costs, speed_table
from rows import MAX_MODEL_LEN, MODELS, ROWS, Row
from side import (
    Bystanders,
    Side,
    SideError,
    end_on_signals,
    env_pair,
    machine_lock,
    processor,
    vllm_env,
    vllm_in_one_process,
    wait_until_quiet,
)

HERE = Path(__file__).parent
GIB = 1 << 30
PEER, PEER_PROCESSES = "vllm", "vllm-mp"
SIDES = (OURS, *QUANTIZED, PEER, PEER_PROCESSES, "transformers", BOUND)
SCRIPTS = {
    OURS: "quire_side.py",
    **dict.fromkeys(QUANTIZED, "quire_side.py"),
    PEER: "vllm_side.py",
    PEER_PROCESSES: "vllm_side.py",
    "transformers": "transformers_side.py",
    BOUND: "linear_side.py",
}


def make_sides(args: argparse.Namespace, names: list[str], model_dir: Path, logs: Path) -> dict[str, Side]:
    made = {}
    for name in names:
        is_peer = name in {PEER, PEER_PROCESSES}
        python = str(args.peer_python.absolute()) if is_peer else sys.executable
        command = [python, str(HERE / "sides" / SCRIPTS[name]), str(model_dir), "--threads", str(args.threads)]
        command += ["--max-model-len", str(MAX_MODEL_LEN), "--kv-bytes", str(args.kv_gib * GIB)]
        command += ["--quantization", QUANTIZED[name]] if name in QUANTIZED else []
        env = {"OMP_NUM_THREADS": str(args.threads)}
        if is_peer:
            env = vllm_env(args.threads, args.kv_gib, logs)
            env |= vllm_in_one_process(args.peer_python, args.threads) if name == PEER else {}
            env |= dict(args.peer_env)
        made[name] = Side(name, command, env, logs / f"{name}.log")
    return made


def run_row(side: Side, row: Row, prompts: list[list[int]]) -> float:
    """Tokens/s."""
    answer = side.ask(prompts, row.output_tokens, row.decode_only)
    if row.decode_only:
        return answer.decode_tokens / answer.decode_seconds
    return row.num_prompts * (row.output_tokens if row.output_tokens > 1 else row.prompt_tokens) / answer.seconds


def measure_alone(sides: dict[str, Side], rows: list[Row], args: argparse.Namespace, results: Results) -> None:
    """Start sides in turn, each alone, --starts times; in the first, read its memory after the row that writes most KV."""
    largest = max(rows, key=lambda row: row.total_tokens)
    for number in range(args.starts):
        for name, side in sides.items():
            if name == BOUND:
                continue
            with machine_lock(args.lock):
                results.start_s.setdefault(name, []).append(side.start())
                if number == 0:
                    run_row(side, largest, largest.prompts(random.Random(1)))
                    results.memory[name] = side.memory()
                side.kill()
        progress(f"start {number + 1}/{args.starts}")


def measure(sides: dict[str, Side], rows: list[Row], args: argparse.Namespace, results: Results) -> None:
    """All rounds of a row, then the next row. A round disturbed by other processes is done again, --rounds times at most in a row."""
    rng = random.Random(0)
    for row in rows:
        results.begin(row)
        run_round(sides, row.warm_up(), rng, args.lock, results)
        for number in range(2 * args.rounds):
            wait_until_quiet(args.max_others, args.wait_quiet_s)
            is_reversed = number % 2 == 1
            found = run_round(sides, row, rng, args.lock, results, is_reversed=is_reversed)
            results.rounds[row.name].append(found)
            rates = {name: round(rate) for name, rate in found.tokens_per_s.items()}
            progress(f"{row}: round {number + 1}: {rates} tok/s, others took {100 * found.others:.0f} %")
            if results.num_quiet(row, args.max_others) == args.rounds:
                break
        results.keep_quietest(row, args.rounds)


def run_round(
    sides: dict[str, Side],
    row: Row,
    rng: random.Random,
    lock: Path | None,
    results: Results,
    *,
    is_reversed: bool = False,
) -> Round:
    """Every side once, on the same prompts; who begins alternates, so that a drift of the machine favours nobody."""
    prompts, rates, others = row.prompts(rng), {}, 0.0
    with machine_lock(lock):
        for name in reversed(sides) if is_reversed else sides:
            bystanders, started = Bystanders(sides.values()), time.perf_counter()
            rates[name] = run_row(sides[name], row, prompts)
            results.cost_s[row.name][name] += time.perf_counter() - started
            others = max(others, bystanders.share())
    return Round(rates, others)


def progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def chosen_sides(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """What --sides says; by default us, our int8, the peer and the bound."""
    peer = PEER if args.peer_python else "transformers"
    names = args.sides.split(",") if args.sides else [OURS, next(iter(QUANTIZED)), peer, BOUND]
    if unknown := set(names) - set(SIDES):
        parser.error(f"--sides: {', '.join(sorted(unknown))}: choose from {', '.join(SIDES)}")
    if {PEER, PEER_PROCESSES} & set(names) and not args.peer_python:
        parser.error("--sides: vLLM needs --peer-python, an interpreter of an environment with vLLM's CPU backend")
    return [name for name in SIDES if name in names]


def parse() -> tuple[argparse.Namespace, list[str], list[Row]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="interpreter of an environment with vLLM's CPU backend")
    parser.add_argument(
        "--peer-env",
        type=env_pair,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for vLLM, over what is its best setting",
    )
    parser.add_argument("--shape", choices=list(MODELS), default="88m")
    parser.add_argument("--rows", help=f"some of {','.join(ROWS)} [all]", default=",".join(ROWS))
    parser.add_argument("--sides", help=f"some of {','.join(SIDES)} [quire, its int8, vllm or transformers, linear]")
    parser.add_argument("--rounds", type=int, default=5, help="pairs that count, after one short warm-up [5]")
    parser.add_argument("--starts", type=int, default=3, help="starts of each side, 0 for neither start nor memory [3]")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kv-gib", type=int, default=1, help="bytes of KV of each side, in GiB; 1 holds every row [1]")
    parser.add_argument("--work", type=Path, help="folder for model, logs and vLLM's cache, kept [a temporary one]")
    parser.add_argument("--lock", type=Path, help="file to lock while measuring, a round at a time")
    parser.add_argument(
        "--max-others", type=float, default=0.15, help="share of the processors that others may take in a round [0.15]"
    )
    parser.add_argument(
        "--wait-quiet-s",
        type=float,
        default=20.0,
        help="seconds a round may wait until others take less than --max-others [20]",
    )
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    args = parser.parse_args()
    if unknown := set(args.rows.split(",")) - set(ROWS):
        parser.error(f"--rows: {', '.join(sorted(unknown))}: choose from {', '.join(ROWS)}")
    if args.rounds < 1 or args.starts < 0 or args.threads < 1 or args.kv_gib < 1:
        parser.error("--rounds, --threads and --kv-gib must be at least 1, --starts at least 0")
    return args, chosen_sides(args, parser), [ROWS[name] for name in args.rows.split(",")]


def report(args: argparse.Namespace, words: str, results: Results, minutes: float) -> None:
    """Print tables and write --json, of the rows that are complete."""
    setting = {"processor": processor(), "threads": args.threads, "model": words, "kv_gib": args.kv_gib}
    setting |= {"rounds": args.rounds, "minutes": minutes}
    print(f"{setting['processor']}, {args.threads} threads; {words}, bf16, greedy, {args.kv_gib} GiB of KV each;")
    print(f"{args.rounds} interleaved rounds, medians of per-round ratios (range); {minutes} minutes.\n")
    print(speed_table(results))
    engines = [side for side in results.sides if side != BOUND]
    if args.starts and all(len(results.start_s.get(side, [])) == args.starts for side in engines):
        print("\n" + cost_table(results))
    print("\nMeasuring took: " + row_costs(results))
    if args.json:
        args.json.write_text(json.dumps({"setting": setting, **results.as_json()}, indent=1) + "\n")


def main() -> None:
    args, names, rows = parse()
    end_on_signals()
    sizes, words = MODELS[args.shape]
    results = Results(sides=names)
    began = time.perf_counter()
    with work_folder(args.work) as folder, ExitStack() as running:
        model_dir = folder / args.shape
        make_random_checkpoint(model_dir, sizes)
        sides = make_sides(args, names, model_dir, folder)
        for side in sides.values():
            running.callback(side.kill)
        failure = None
        try:
            measure_alone(sides, rows, args, results)
            for side in sides.values():
                side.start()
            measure(sides, rows, args, results)
        except (SideError, KeyboardInterrupt) as error:
            failure = str(error) or "interrupted"
    report(args, words, results, round((time.perf_counter() - began) / 60, 1))
    if failure:
        sys.exit(f"the rows above are all that are complete: {failure}")


if __name__ == "__main__":
    main()
