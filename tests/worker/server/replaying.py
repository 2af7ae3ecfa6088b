"""A router's half of token replay, in a few lines: what a stream's comment lines say, and the envelope for going on after any event."""

import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from quire_contract.resume import HEADER_REPLAY, PATH_RESUME, ResumeEnvelope

REPLAY = {HEADER_REPLAY: "1"}


@dataclass
class Progress:
    """How far a client is."""

    path: str
    body: str
    state: str = ""
    num_events: int = 0
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    last_choice: int | None = None
    usage: list[tuple[int, ...]] = field(default_factory=list)
    migrates: bool = False
    data: list[str] = field(default_factory=list)
    """Of the events, without comment lines."""

    def take(self, event: str) -> None:
        """One more event is with the client."""
        shown = [line for line in event.split("\n") if not line.startswith(":")]
        if shown:
            self.num_events += 1
            self.data.append("\n".join(shown))
        for line in event.split("\n"):
            match line.split(" "):
                case [":", "s", state]:
                    self.state = state
                case [":", "t", choice, ids]:
                    self.last_choice = int(choice)
                    self.tokens.setdefault(int(choice), []).extend(map(int, ids.split(",")))
                case [":", "f", choice]:
                    self.finished.add(int(choice))
                case [":", "u", *counts]:
                    self.usage.append(tuple(map(int, counts)))
                case [":", "migrate"]:
                    self.migrates = True

    @property
    def envelope(self) -> bytes:
        """For going on from here."""
        indices = sorted(self.tokens.keys() | self.finished)
        return json.dumps(
            {
                "path": self.path,
                "body": self.body,
                "state": self.state,
                "num_events": self.num_events,
                "choices": [
                    {"index": i, "token_ids": self.tokens.get(i, []), "finished": i in self.finished} for i in indices
                ],
                "last_choice": self.last_choice,
            }
        ).encode()

    @property
    def decoded(self) -> ResumeEnvelope:
        """The envelope as a worker reads it."""
        return msgspec.json.decode(self.envelope, type=ResumeEnvelope)


def progress_after(path: str, body: str, events: list[str]) -> Progress:
    """Of a client that has these events."""
    progress = Progress(path, body)
    for event in events:
        progress.take(event)
    return progress


class Worker:
    """A worker as its router sees it."""

    def __init__(self, base: str, token: str, http: aiohttp.ClientSession) -> None:
        self._base = base
        self._headers = {"x-quire-token": token, "content-type": "application/json"}
        self._http = http

    async def begin(self, path: str, body: str) -> list[str]:
        """The events of a stream to its end."""
        return await self._events(path, body.encode(), REPLAY)

    async def go_on(self, envelope: bytes) -> list[str]:
        """The events of a stream that goes on here."""
        return await self._events(PATH_RESUME, envelope, {})

    async def refusal(self, envelope: Any, headers: Any = None) -> tuple[int, dict[str, Any]]:
        """Status and error."""
        data = envelope if isinstance(envelope, bytes) else json.dumps(envelope).encode()
        async with self._http.post(
            self._base + PATH_RESUME, data=data, headers=self._headers if headers is None else headers
        ) as response:
            return response.status, (await response.json())["error"]

    async def _events(self, path: str, body: bytes, headers: dict[str, str]) -> list[str]:
        async with self._http.post(self._base + path, data=body, headers={**self._headers, **headers}) as response:
            text = await response.text()
            assert response.status == 200, text
            assert response.content_type == "text/event-stream"
        assert text.endswith("\n\n")
        return text.removesuffix("\n\n").split("\n\n")
