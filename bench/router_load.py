"""Load for bench/router.py, and what it cost: wrk for the rate, a paced client for latency, streams for events and memory.

Bodies are chats of about 1.1 KB. Their kinds: "shared" (one of the mock's 20 prefixes, a tail of 200 bytes that is new every time), "new"
(all of it new) and "short" (100 bytes, always the same).
"""

import asyncio
import json
import os
import random
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import router_mock

KINDS = ("shared", "new", "short")
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
TICKS = os.sysconf("SC_CLK_TCK")
_LUA = """
local words = {%(words)s}
local prefixes = {%(prefixes)s}
wrk.method, wrk.path = "POST", "/v1/chat/completions"
wrk.headers["Content-Type"] = "application/json"
%(headers)s
local function text(size)
  local parts, length = {}, 0
  while length < size do
    local word = words[math.random(#words)]
    parts[#parts + 1], length = word, length + #word + 1
  end
  return string.sub(table.concat(parts, " "), 1, size)
end
init = function(args) math.randomseed(%(seed)d) end
request = function() return wrk.format(nil, nil, nil, %(body)s) end
"""
_BODIES = {
    "shared": """'{"model":"mock","messages":[{"role":"system","content":"' .. prefixes[math.random(#prefixes)] ..
        '"},{"role":"user","content":"' .. text(200) .. '"}]}'""",
    "new": """'{"model":"mock","messages":[{"role":"system","content":"' .. text(850) ..
        '"},{"role":"user","content":"' .. text(200) .. '"}]}'""",
    "short": """'{"model":"mock","messages":[{"role":"user","content":"' .. string.rep("word ", 8) .. '"}]}'""",
}


@dataclass(frozen=True)
class Rate:
    """What wrk saw."""

    per_s: float
    num_failed: int
    """Answers other than 200, and broken connections."""


def wrk(url: str, kind: str, seconds: float, folder: Path, headers: dict[str, str]) -> Rate:
    """`wrk -t1 -c32` with bodies of a kind, on this process's processors."""
    quoted = {"words": router_mock.words(), "prefixes": router_mock.prefixes()}
    script = folder / f"{kind}.lua"
    values: dict[str, object] = {name: ",".join(map(json.dumps, texts)) for name, texts in quoted.items()}
    lines = [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items()]
    values |= {"seed": random.randrange(2**31), "body": _BODIES[kind], "headers": "\n".join(lines)}
    script.write_text(_LUA % values)
    command = ["wrk", "-t1", "-c32", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(script), url]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Requests/sec: +([0-9.]+)", out)
    assert found is not None, out
    failed = [
        int(number) for line in re.findall(r"Non-2xx.*|Socket errors.*", out) for number in re.findall(r"\d+", line)
    ]
    return Rate(float(found[1]), sum(failed) - (2 if "Non-2xx" in out else 0))


def body(kind: str, rng: random.Random, prefixes: list[str], **fields: object) -> bytes:
    """One body of a kind."""
    system = rng.choice(prefixes) if kind == "shared" else router_mock.text(rng, 850)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": router_mock.text(rng, 200)}]
    return json.dumps({"model": router_mock.MODEL, "messages": messages, **fields}).encode()


def message(content: bytes, headers: dict[str, str]) -> bytes:
    """The bytes of a request."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{HEAD}{lines}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def paced(port: int, per_s: float, num_requests: int, headers: dict[str, str]) -> list[float]:
    """Latencies in seconds, sorted, of requests of kind "shared" that are sent on time whatever the answers do, over idle connections."""
    rng, prefixes = random.Random(), router_mock.prefixes()
    bodies = [message(body("shared", rng, prefixes), headers) for _ in range(num_requests)]
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    seen: list[float] = []

    async def one(data: bytes) -> None:
        reader, writer = free.pop() if free else await asyncio.open_connection("127.0.0.1", port)
        started = time.perf_counter()
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: *([0-9]+)", head, re.IGNORECASE)
        assert length is not None, head
        await reader.readexactly(int(length[1]))
        seen.append(time.perf_counter() - started)
        assert b" 200 " in head[:16], head
        free.append((reader, writer))

    begun = time.perf_counter()
    tasks = []
    for number, data in enumerate(bodies):
        await asyncio.sleep(max(0.0, begun + number / per_s - time.perf_counter()))
        tasks.append(asyncio.create_task(one(data)))
    await asyncio.gather(*tasks)
    for _, writer in free:
        writer.close()
    return sorted(seen)


@dataclass(frozen=True)
class Streamed:
    """What streams cost the processes in the middle, from the moment when all were open."""

    num_events: int
    cpu_s: float
    memory_mib: float
    """While all were open."""

    @property
    def us_per_event(self) -> float:
        """Processor time of one event, in microseconds."""
        return self.cpu_s / max(1, self.num_events) * 1e6


async def streams(
    port: int, number: int, num_events: int, gap_s: float, headers: dict[str, str], pids: list[int]
) -> Streamed:
    """`number` streams at once, of so many events each. `pids` are the processes in the middle."""
    rng, prefixes = random.Random(), router_mock.prefixes()
    fields = {"stream": True, "max_tokens": num_events, "stream_gap_s": gap_s}
    delivered = 0
    begun = 0
    all_open = asyncio.Event()

    async def one() -> None:
        nonlocal delivered, begun
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        writer.write(message(body("shared", rng, prefixes, **fields), headers))
        assert b" 200 " in (await reader.readuntil(b"\r\n\r\n"))[:16]
        begun += 1
        if begun == number:
            all_open.set()
        ended = False
        while not ended and (data := await reader.read(65536)):
            delivered += data.count(b"data: {")
            ended = b"[DONE]" in data
        writer.close()

    tasks = []
    for _ in range(number):
        tasks.append(asyncio.create_task(one()))
        if len(tasks) % 50 == 0:
            await asyncio.sleep(0.05)
    await asyncio.wait([asyncio.ensure_future(all_open.wait()), *tasks], return_when=asyncio.FIRST_COMPLETED)
    cpu_s, before, memory = cpu_of(pids), delivered, memory_of(pids)
    await asyncio.gather(*tasks)
    return Streamed(num_events=delivered - before, cpu_s=cpu_of(pids) - cpu_s, memory_mib=memory)


def cpu_of(pids: list[int]) -> float:
    """Processor time of processes so far, in seconds, their threads included."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def memory_of(pids: list[int]) -> float:
    """Resident memory of processes in MiB; pages that several share count once (PSS)."""
    total = 0
    for pid in pids:
        found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        total += int(found[1]) if found else 0
    return total / 1024
