"""Holds a worker to its own /openapi.json: bodies by the schema, mutated bodies and broken bytes against every POST route.

A finding is an answer of 500 or more, none within 30 s, an answer or a stream's event outside its schema, or a body outside its schema that
is taken. The demo model serves unless `--url` names a worker. Exits with 1 if anything was found.

    python bench/fuzz_server.py --minutes 10 --mutations 100000
"""

import argparse
import asyncio
import collections
import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from jsonschema import Draft202012Validator
from schema_bodies import Maker, broken, mutated

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "models" / "quire-demo"
MODEL = "quire-demo"
FLAGS = (
    "--device=cpu",
    "--compute-threads=1",
    "--num-gpu-blocks-override=512",
    "--max-model-len=128",
    "--disable-log-requests",
)
HANG_S = 30.0
AT_ONCE = 16
SHOWN = 20
OBJECT: Any = {
    "type": "object",
    "properties": {"metres": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["metres"],
    "additionalProperties": False,
}
FUNCTION: Any = {"name": "f", "parameters": OBJECT}
FORMAT: Any = {"type": "json_schema", "name": "x", "schema": OBJECT, "json_schema": {"name": "x", "schema": OBJECT}}
HINTS: Mapping[str, list[Any]] = {
    "model": [MODEL],
    "role": ["user", "user", "assistant", "system"],
    "content": ["hi", "5 km", [{"type": "text", "text": "a"}]],
    "audio": [None],
    "type": ["text", "message", "function", "auto", "tool_result", "output_text"],
    "max_tokens": [1, 2, 3],
    "max_completion_tokens": [1, 2, 3],
    "max_output_tokens": [1, 2, 3],
    "prompt": ["5 km", ["a", "b"], [1, 2, 3], [[1], [2, 3]]],
    "input": ["5 km"],
    "n": [1, 2],
    "stream_options": [None],
    "tools": [
        None,
        None,
        [{"type": "function", **FUNCTION, "function": FUNCTION}],
        [{"name": "f", "input_schema": OBJECT}],
    ],
    "response_format": [None, {"type": "json_object"}, FORMAT],
    "text": [None, {"format": {"type": "json_object"}}, {"format": FORMAT}],
    "output_config": [None, {"format": FORMAT}, {"effort": "low"}],
    "tool_calls": [None],
    "structured_outputs": [None, {"choice": ["a", "b"]}, {"regex": "[ab]{1,3}"}],
    "truncation": [None, "auto"],
    "include": [None, ["message.output_text.logprobs"]],
    "min_tokens": [None, 0, 1],
    "top_logprobs": [None, 0, 2],
    "logprobs": [None, True, 1],
    "best_of": [None],
    "tool_choice": [None, None, "auto", "required", {"type": "auto"}, {"type": "any"}],
    "thinking": [None, {"type": "disabled"}],
    "continue_final_message": [None, False],
    "chat_template_kwargs": [None, {}, {"enable_thinking": True}],
    "stop_token_ids": [None, [5]],
    "logit_bias": [None, {"5": 1.5}],
}


@dataclass
class Finding:
    """Something that must not be."""

    what: str
    path: str
    status: int | None
    body: bytes
    detail: str

    def __str__(self) -> str:
        return f"{self.what}: POST {self.path} -> {self.status}\n  body: {self.body[:600]!r}\n  {self.detail[:800]}"


@dataclass
class Tally:
    """What was sent and found."""

    statuses: collections.Counter[tuple[str, int]] = field(default_factory=collections.Counter)
    findings: list[Finding] = field(default_factory=list)


class Spec:
    """The document, ready to make bodies and to judge answers."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.components = document["components"]["schemas"]
        self._maker = Maker(components=self.components, hints=HINTS)
        self._operations = {path: each["post"] for path, each in document["paths"].items() if "post" in each}
        self.paths = [path for path, each in self._operations.items() if "requestBody" in each]
        self._validators: dict[tuple[str, str], Draft202012Validator] = {}
        self._document = document

    def body(self, path: str, rng: random.Random) -> Any:
        """A body that fits the schema."""
        return self._maker.make(self.body_schema(path), rng)

    def fits(self, path: str, body: Any) -> bool:
        """Whether a body fits."""
        return self._validator(path, "body", self.body_schema(path)).is_valid(body)

    def problem(self, path: str, status: int, media: str, data: bytes) -> str | None:
        """What is wrong with an answer, if anything is."""
        content = self._operations[path]["responses"].get(str(status), {}).get("content", {}).get(media)
        if content is None:
            return f"status {status} with {media} is not in the document; {data[:300]!r}"
        validator = self._validator(path, f"{status} {media}", content["schema"])
        for text in _events(data) if media == "text/event-stream" else [data]:
            try:
                error = next(validator.iter_errors(json.loads(text)), None)
            except ValueError:
                return f"not JSON: {text[:300]!r}"
            if error is not None:
                return f"{error.json_path}: {error.message[:300]}; {text[:300]!r}"
        return None

    def body_schema(self, path: str) -> Any:
        """What a body must fit."""
        return self._operations[path]["requestBody"]["content"]["application/json"]["schema"]

    def _validator(self, path: str, what: str, schema: Any) -> Draft202012Validator:
        key = (path, what)
        if key not in self._validators:
            rooted = {"components": self._document["components"], "allOf": [schema]}
            self._validators[key] = Draft202012Validator(rooted)
        return self._validators[key]


def _events(stream: bytes) -> list[bytes]:
    """The data of a stream's events, without the word that ends OpenAI's."""
    found = re.findall(rb"^data: (.*)$", stream, re.MULTILINE)
    return [data for data in found if data != b"[DONE]"]


async def send(session: aiohttp.ClientSession, url: str, path: str, data: bytes) -> tuple[int, str, bytes] | str:
    """Status, media type and body; or why there are none."""
    try:
        async with asyncio.timeout(HANG_S), session.post(url + path, data=data) as answer:
            return answer.status, answer.content_type, await answer.read()
    except TimeoutError:
        return f"no answer within {HANG_S:g} s"
    except aiohttp.ClientError as error:
        return f"{type(error).__name__}: {error}"


async def check(
    session: aiohttp.ClientSession, url: str, spec: Spec, tally: Tally, path: str, data: bytes, *, fits: bool | None
) -> None:
    """Send one body and judge the answer. `fits`: whether the body is within its schema; None: it may be either."""
    told = await send(session, url, path, data)
    if isinstance(told, str):
        tally.findings.append(Finding("no answer", path, None, data, told))
        return
    status, media, answer = told
    tally.statuses[path, status] += 1
    if status >= 500:
        tally.findings.append(Finding("server error", path, status, data, repr(answer[:500])))
        return
    problem = spec.problem(path, status, media, answer)
    if problem is not None:
        tally.findings.append(Finding("answer outside the schema", path, status, data, problem))
    if fits is False and status < 400:
        tally.findings.append(Finding("body outside the schema was taken", path, status, data, ""))


def valid_case(spec: Spec, rng: random.Random) -> tuple[str, bytes, bool | None]:
    """A body by the schema."""
    path = rng.choice(spec.paths)
    return path, json.dumps(spec.body(path, rng)).encode(), True


def mutated_case(spec: Spec, rng: random.Random) -> tuple[str, bytes, bool | None]:
    """A body with something changed, or bytes with something broken."""
    path = rng.choice(spec.paths)
    body = spec.body(path, rng)
    if rng.random() < 0.3:
        return path, broken(json.dumps(body).encode(), rng), None
    changed = mutated(body, rng)
    return path, json.dumps(changed).encode(), spec.fits(path, changed)


async def run(url: str, *, seed: int, minutes: float, mutations: int) -> Tally:
    """Valid bodies for so long, then so many mutated ones."""
    tally = Tally()
    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:
        async with session.get(url + "/openapi.json") as answer:
            spec = Spec(await answer.json())
        end_s = time.monotonic() + minutes * 60
        left = mutations

        async def lane(number: int) -> None:
            nonlocal left
            rng = random.Random(seed * 1000 + number)
            while time.monotonic() < end_s:
                path, data, fits = valid_case(spec, rng)
                await check(session, url, spec, tally, path, data, fits=fits)
            while left > 0:
                left -= 1
                path, data, fits = mutated_case(spec, rng)
                await check(session, url, spec, tally, path, data, fits=fits)

        await asyncio.gather(*(lane(number) for number in range(AT_ONCE)))
        async with session.get(url + "/health") as answer:
            if answer.status != 200:
                tally.findings.append(Finding("unhealthy at the end", "/health", answer.status, b"", ""))
    return tally


@contextlib.contextmanager
def demo_worker() -> Iterator[str]:
    """A worker with the demo model on a free port; gives its address."""
    command = [
        sys.executable,
        "-m",
        "quire_worker",
        "--model",
        str(DEMO),
        "--served-model-name",
        MODEL,
        "--port",
        "0",
        *FLAGS,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            port = None
            for line in process.stderr:
                found = re.search(r"event=listening .*port=(\d+)", line)
                port = found[1] if found else port
                if "event=ready" in line:
                    break
            if port is None or process.poll() is not None:
                raise SystemExit("the worker did not start")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a worker's address; without it the demo model is served for the run")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to send bodies that fit the schema")
    parser.add_argument("--mutations", type=int, default=100_000, help="how many mutated bodies to send then")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = args.url or stack.enter_context(demo_worker())
        started_s = time.monotonic()
        tally = asyncio.run(run(url, seed=args.seed, minutes=args.minutes, mutations=args.mutations))
        took_s = time.monotonic() - started_s
    total = sum(tally.statuses.values())
    print(f"{total} bodies in {took_s:.0f} s ({total / took_s:.0f}/s), {len(tally.findings)} findings")
    for (path, status), count in sorted(tally.statuses.items()):
        print(f"  {path:<28} {status}  {count}")
    for finding in tally.findings[:SHOWN]:
        print(finding)
    sys.exit(1 if tally.findings else 0)


if __name__ == "__main__":
    main()
