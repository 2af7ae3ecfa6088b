"""How far a fetch is, and the small HTTP server that says so to the operator: numbers, no names of files, no URLs with queries.

This module must not know sources or files on disk.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Literal

import msgspec
from aiohttp import web

from quire_contract import names

Phase = Literal["resolving", "downloading", "verifying", "done", "failed"]
_MAX_MESSAGE_CHARS = 400


class Progress:
    """One fetch, from its beginning to its end."""

    def __init__(self) -> None:
        self.phase: Phase = "resolving"
        self.total_bytes: int | None = None
        """Of all files; None until the source has said it."""
        self.message = ""
        """For a person."""
        self.trouble = ""
        """What is wrong with the source just now; "" if nothing is."""
        self.received_bytes = 0
        """That came over the network, whatever became of them; 0: the model was there."""
        self._done_bytes: dict[str, int] = {}

    def enter(self, phase: Phase, message: str = "") -> None:
        """The next phase; the trouble of the one before is over."""
        self.phase, self.message, self.trouble = phase, message[:_MAX_MESSAGE_CHARS], ""

    def on_trouble(self, text: str) -> None:
        """The source has trouble just now, and is tried again; "" when it has none any more."""
        self.trouble = text[:_MAX_MESSAGE_CHARS]

    def on_file(self, name: str, done_bytes: int) -> None:
        """`done_bytes` of a file are on disk; fewer than before if it began anew."""
        self._done_bytes[name] = done_bytes

    @property
    def done_bytes(self) -> int:
        """Of all files."""
        return sum(self._done_bytes.values())

    def as_json(self) -> bytes:
        """What the operator reads."""
        fields: Mapping[str, object] = {
            "phase": self.phase,
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "message": self.message,
            "trouble": self.trouble,
        }
        return msgspec.json.encode(fields)


@asynccontextmanager
async def progress_server(progress: Progress, host: str, port: int) -> AsyncIterator[int]:
    """Serves GET /progress while entered; gives the port. Raises OSError if it cannot listen."""

    async def answer(request: web.Request) -> web.Response:
        del request
        return web.Response(body=progress.as_json(), content_type="application/json")

    app = web.Application()
    app.router.add_get(names.PATH_FETCH_PROGRESS, answer)
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
