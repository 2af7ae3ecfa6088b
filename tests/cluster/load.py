"""Requests that go on while something happens to the cluster: a count of what failed and which streams broke.

A client is strict: every request is a connection of its own and nothing is retried, so what fails is seen. Must not know Kubernetes.
"""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

REQUEST_TIMEOUT_S = 120.0
JOIN_TIMEOUT_S = 150.0
MAX_TOLD = 8


@dataclass(kw_only=True)
class Outcome:
    """What came of the requests that ended so far."""

    num_answered: int = 0
    num_streamed: int = 0
    failures: list[str] = field(default_factory=list)
    """Requests without a whole answer of status 200: what each met instead."""
    broken: list[str] = field(default_factory=list)
    """Streams that began and did not end as they should: an error event, no [DONE], or tokens missing."""
    by_worker: Counter[str] = field(default_factory=Counter)
    """Worker -> requests that it began to answer with status 200."""
    streaming: Counter[str] = field(default_factory=Counter)
    """Worker -> streams of it that began and have not ended yet."""

    @property
    def num_good(self) -> int:
        """Requests that were answered wholly."""
        return self.num_answered + self.num_streamed

    @property
    def workers(self) -> set[str]:
        """Who answered."""
        return set(self.by_worker)

    def check(self, min_good: int) -> None:
        """Raises AssertionError where a request failed, a stream broke, or fewer than `min_good` were answered."""
        told = "\n".join([*self.failures[:MAX_TOLD], *self.broken[:MAX_TOLD]])
        assert not self.failures and not self.broken, (
            f"{len(self.failures)} failed and {len(self.broken)} broken of {self.num_good} good ones:\n{told}"
        )
        assert self.num_good >= min_good, f"only {self.num_good} requests ended"


class BrokenStreamError(Exception):
    """A stream began and did not end as it should."""


class Load:
    """`with Load(url, model) as load:` sends requests from `num_clients` clients at once, every other one a stream."""

    def __init__(
        self, base_url: str, model: str, *, num_clients: int = 3, max_tokens: int = 32, num_more_words: int = 0
    ) -> None:
        """`num_more_words` makes every prompt that much longer, after what tells it from the others."""
        self.outcome = Outcome()
        self._url, self._model = f"{base_url}/v1/chat/completions", model
        self._num_clients, self._max_tokens = num_clients, max_tokens
        self._more_words = " and so on" * (num_more_words // 3)
        self._stopping = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets the requests under way end."""
        self._stopping.set()
        self._thread.join(JOIN_TIMEOUT_S)
        assert not self._thread.is_alive(), "requests did not end"

    async def _run(self) -> None:
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            await asyncio.gather(*(self._client(session, number) for number in range(self._num_clients)))

    async def _client(self, session: aiohttp.ClientSession, client: int) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            await self._request(
                session, f"Client {client} asks for number {number}{self._more_words}.", stream=number % 2 == 1
            )

    async def _request(self, session: aiohttp.ClientSession, prompt: str, *, stream: bool) -> None:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self._max_tokens,
            "ignore_eos": True,
            "stream": stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
        }
        began, worker = time.monotonic(), "nobody"
        try:
            async with session.post(self._url, json=body) as response:
                worker = response.headers.get("x-quire-worker", "nobody")
                if response.status != 200:
                    raise aiohttp.ClientPayloadError(f"status {response.status}: {(await response.text())[:300]}")
                self.outcome.by_worker[worker] += 1
                if stream:
                    await self._read_stream(response, worker)
                    self.outcome.num_streamed += 1
                else:
                    self._check_tokens((await response.json()).get("usage"))
                    self.outcome.num_answered += 1
        except BrokenStreamError as error:
            self.outcome.broken.append(self._told(began, worker, error))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self.outcome.failures.append(self._told(began, worker, error))

    async def _read_stream(self, response: aiohttp.ClientResponse, worker: str) -> None:
        is_done, usage = False, None
        self.outcome.streaming[worker] += 1
        try:
            async for data in _events(response):
                is_done = data == "[DONE]"
                event = {} if is_done else json.loads(data)
                if "error" in event:
                    raise BrokenStreamError(f"an error event: {data[:300]}")
                usage = event.get("usage") or usage
        except (aiohttp.ClientError, TimeoutError) as error:
            raise BrokenStreamError(repr(error)) from error
        finally:
            self.outcome.streaming[worker] -= 1
        if not is_done:
            raise BrokenStreamError("the stream ended without [DONE]")
        self._check_tokens(usage)

    def _check_tokens(self, usage: dict[str, Any] | None) -> None:
        found = (usage or {}).get("completion_tokens")
        if found != self._max_tokens:
            raise BrokenStreamError(f"{found} tokens, not {self._max_tokens}")

    def _told(self, began: float, worker: str, error: Exception) -> str:
        since, lasted = began - self._started, time.monotonic() - began
        return f"sent {since:.1f} s after the start, {lasted:.1f} s long, by {worker}: {error!r}"


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in response.content:
        if line.startswith(b"data:"):
            yield line[5:].decode().strip()
