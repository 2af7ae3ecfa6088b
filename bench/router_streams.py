"""Streams of a real model whose worker is killed: do they end as the undisturbed ones, and if not, how near were the two tokens?

    python bench/router_streams.py [--dtype bfloat16] [--streams 200] [--json FILE]

Three workers with the demo model, a router. All streams run at once, twice undisturbed, so that what differs without any help is
known, and once while a worker is killed: of all four APIs, greedy and seeded, with JSON schemas, with forced tools, with
log-probabilities. A stream is equal if every byte is, ids and times apart. Of a chat or completion that is not, told is where its tokens
part and how far apart the logits of the two were in the undisturbed run. Exit code 1 if in float32 a stream differs, in bfloat16 more
than 1 %, or one does not end.
"""

import argparse
import asyncio
import contextlib
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import router_rig

from quire_contract.router_config import ModelEntry, RouterConfig, write_config
from quire_contract.router_settings import FaultSettings, RouterSettingsEntry
from quire_contract.trust import Trust
from tests.router.processes import RouterProcess, WorkerProcess
from tests.router.test_streams_survive import SCHEMA, TOOL, Fleet, normal

WAVE_S = 400.0
MAX_TOKENS = 100
NEAR = 5
"""Events of each stream, on average, before the worker is killed."""
MAX_DIFFERENT = {"float32": 0.0, "bfloat16": 0.01}
GREEDY = {"temperature": 0}
CALL_ID = re.compile(rb'"call_id":"[a-z]+_[0-9a-f]+"')
JSON_SCHEMA = {"name": "numbers", "schema": SCHEMA, "strict": True}


def requests_of(number: int) -> list[tuple[str, dict[str, Any]]]:
    """(path, body), each with words of its own."""
    made: list[tuple[str, dict[str, Any]]] = []
    for i in range(number):
        text = f"Say the numbers from {i} to {i + 60}."
        talk = [{"role": "user", "content": text}]
        chance: dict[str, Any] = {"temperature": 0} if i // 8 % 2 else {"temperature": 0.8, "seed": i}
        shown = {"logprobs": True, "top_logprobs": 5}
        body = {"messages": talk, "max_tokens": MAX_TOKENS, **chance}
        match i % 8:
            case 0 | 1:
                made.append(("/v1/chat/completions", {**body, **shown, "ignore_eos": True}))
            case 2:
                form = {"type": "json_schema", "json_schema": JSON_SCHEMA}
                made.append(("/v1/chat/completions", {**body, **shown, "response_format": form}))
            case 3:
                made.append(("/v1/chat/completions", {**body, "tools": [TOOL], "tool_choice": "required"}))
            case 4:
                body = {"prompt": text, "max_tokens": MAX_TOKENS, "ignore_eos": True, "logprobs": 5, **chance}
                made.append(("/v1/completions", body))
            case 5:
                form = {"format": {"type": "json_schema", **JSON_SCHEMA}}
                made.append(("/v1/responses", {"input": talk, "max_output_tokens": MAX_TOKENS, "text": form, **GREEDY}))
            case 6:
                tool = {"type": "function", "name": "add", "parameters": SCHEMA, "strict": True}
                asked = {"tools": [tool], "tool_choice": "required", "max_output_tokens": MAX_TOKENS}
                made.append(("/v1/responses", {"input": talk, **asked, **GREEDY}))
            case _:
                anthropic = {"tools": [{"name": "add", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}}
                made.append(("/v1/messages", {"messages": talk, "max_tokens": MAX_TOKENS, **anthropic, **GREEDY}))
    return made


def tokens_of(events: list[bytes]) -> list[tuple[str, dict[str, float]]]:
    """(token, log-probabilities of the best) of a chat or completion with log-probabilities."""
    found: list[tuple[str, dict[str, float]]] = []
    for event in events:
        if not event.startswith(b"data: {") or b'"logprobs":{' not in event:
            continue
        for choice in json.loads(event[6:].replace(b"{,", b"{"))["choices"]:
            shown = choice["logprobs"] or {}
            for entry in shown.get("content") or ():
                found.append((entry["token"], {top["token"]: top["logprob"] for top in entry["top_logprobs"]}))
            found += zip(shown.get("tokens") or (), shown.get("top_logprobs") or (), strict=True)
    return found


def difference(expected: list[bytes], got: list[bytes]) -> str:
    """Where tokens part, and how near they were."""
    pairs = zip(tokens_of(expected), tokens_of(got), strict=False)
    for place, ((token, best), (other, _)) in enumerate(pairs):
        if token != other:
            gap = best[token] - best[other] if token in best and other in best else None
            return f"token {place}: {token!r} and {other!r}, logits {gap} apart"
    return "the same tokens" if tokens_of(expected) else "without log-probabilities"


async def wave(
    fleet: Fleet, asked: list[tuple[str, dict[str, Any]]], victim: WorkerProcess | None
) -> list[list[bytes]]:
    """All streams at once; `victim` is killed once each has sent a few events on average."""
    progress = [0]
    async with asyncio.timeout(WAVE_S):
        streams = [asyncio.create_task(fleet.stream(path, body, progress)) for path, body in asked]
        if victim is not None:
            while progress[0] < NEAR * len(asked):  # noqa: ASYNC110 - a count, nobody sets an event
                await asyncio.sleep(router_rig.POLL_S)
            victim.kill()
        return [normal(CALL_ID.sub(b"", text)) for _, text in await asyncio.gather(*streams)]


async def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both waves; what was found."""
    trust = Trust.generate()
    trust.write(folder / "trust")
    flags = ["--trust-dir", str(folder / "trust"), "--dtype", args.dtype, "--num-gpu-blocks-override", "4096"]
    flags += ["--tool-call-parser", "hermes", "--compute-threads", "1", "--max-num-seqs", "128"]
    with contextlib.ExitStack() as stack:
        workers = [WorkerProcess(f"w{i}", router_rig.DEMO, folder / f"w{i}.log", *flags) for i in range(3)]
        for worker in workers:
            worker.start()
            stack.callback(worker.kill)
        settings = RouterSettingsEntry(faults=FaultSettings(lost_after_s=20.0))
        endpoints = [worker.entry for worker in workers]
        config = RouterConfig(models=[ModelEntry(name="m")], endpoints=endpoints, settings=settings)
        write_config(folder / "router.json", config)
        router = RouterProcess(folder / "router.json", folder / "r.log", "--trust-dir", str(folder / "trust"))
        stack.callback(router.kill)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            fleet = Fleet(workers, router, session, trust)
            await fleet.until_whole()
            asked, started = requests_of(args.streams), time.monotonic()
            expected = await wave(fleet, asked, None)
            print(f"undisturbed: {time.monotonic() - started:.0f} s", flush=True)
            again = await wave(fleet, asked, None)
            killed = await wave(fleet, asked, workers[0])
            resumes = await fleet.resumes()
    ended = [b"".join(events) for events in killed]
    return {
        "took_s": time.monotonic() - started,
        "resumes": resumes,
        "broken": [i for i, text in enumerate(ended) if b"stream_broken" in text or b'"error":{' in text],
        "events": sum(map(len, expected)),
        "differ_undisturbed": [i for i in range(args.streams) if again[i] != expected[i]],
        "differences": {
            f"{i} {asked[i][0]}": difference(expected[i], killed[i])
            for i in range(args.streams)
            if killed[i] != expected[i]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=tuple(MAX_DIFFERENT), default="bfloat16")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(args, Path(folder)))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    different = found["differences"]
    print(
        f"{args.streams} streams in {args.dtype}, three waves in {found['took_s']:.0f} s, {found['events']} events each"
    )
    print(f"went on elsewhere: {found['resumes']}; broken: {found['broken']}")
    print(
        f"differ from the first undisturbed run: the second {found['differ_undisturbed']}, the killed {len(different)}"
    )
    for name, text in different.items():
        print(f"  {name}: {text}")
    too_many = len(different) > MAX_DIFFERENT[args.dtype] * args.streams
    sys.exit(bool(too_many or found["broken"] or not found["resumes"]))


if __name__ == "__main__":
    main()
