"""Real servers on loopback that behave like a model hub, its content network, an S3 store and a plain web server, with faults on order."""

import asyncio
import contextlib
import hashlib
import json
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from quire_worker.fetch.build import Timing, open_fetcher
from quire_worker.fetch.config import FetchConfig
from quire_worker.fetch.progress import Progress

COMMIT = "0123456789abcdef0123456789abcdef01234567"
POLL_S = 0.005
SPEED = 200
"""Times that a test's clock runs faster: waits stay in order and are soon over."""
FOR_EVER_S = 600 * SPEED
"""Ten minutes of this machine's: a fetch that gets there in the end is never late, however long an answer takes."""


def weights(size: int, seed: int = 0) -> bytes:
    """A valid safetensors file of one tensor with `size` bytes."""
    header = json.dumps({f"w{seed}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    body = hashlib.shake_128(str(seed).encode()).digest(size)
    return struct.pack("<Q", len(header)) + header + body


def model(size: int = 300_000) -> dict[str, bytes]:
    """A whole small model."""
    return {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b'{"version": "1.0"}',
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors": weights(size),
    }


def sharded_model(shards: int = 3, size: int = 200_000) -> dict[str, bytes]:
    """The same in several files."""
    names = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    files = {name: weights(size, seed) for seed, name in enumerate(names)}
    index = {"metadata": {}, "weight_map": {f"w{seed}": name for seed, name in enumerate(names)}}
    texts = {name: text for name, text in model(1).items() if name != "model.safetensors"}
    return {**texts, **files, "model.safetensors.index.json": json.dumps(index).encode()}


@dataclass
class Fault:
    """What goes wrong with one request."""

    status: int | None = None
    """Answer with it."""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    corrupt: bool = False
    """Flip a byte."""
    ignore_range: bool = False
    hold: asyncio.Event | None = None
    """Wait in the middle of the body."""


@dataclass
class Seen:
    """A request that came."""

    path: str
    headers: dict[str, str]


class Site:
    """A web server with Range and ETag over files in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.etags: dict[str, str | None] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.token: str | None = None
        """Asked of every request if there is one."""
        self.headers: dict[str, str] = {}
        """Of every answer with a body."""
        self.answer: Callable[[web.Request], web.Response | None] = lambda request: None
        """Answers instead, where it does not give None."""
        self.seen: list[Seen] = []
        self.url = ""

    def requests(self, path: str) -> list[Seen]:
        """Those of one path."""
        return [seen for seen in self.seen if seen.path == path]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.seen.append(Seen(path, {name.lower(): text for name, text in request.headers.items()}))
        faults = self.faults.get(path, [])
        fault = faults.pop(0) if faults else Fault()
        if fault.status is not None:
            return web.Response(status=fault.status, headers=fault.headers)
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        if path in self.redirects:
            return web.Response(status=302, headers={"Location": self.redirects[path]})
        own = self.answer(request)
        if own is not None:
            return own
        if path not in self.files:
            return web.Response(status=404)
        return await self._body(request, self.files[path], fault)

    async def _body(self, request: web.Request, data: bytes, fault: Fault) -> web.StreamResponse:
        etag = self.etags.get(request.path, f'"{hashlib.sha256(data).hexdigest()[:16]}"')
        start, status, headers = 0, 200, dict(self.headers)
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
        if wanted and not fault.ignore_range and condition in {None, etag}:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else len(data), len(data))
            if start >= len(data):
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{len(data)}"
            data = data[start:end]
        if etag is not None:
            headers["ETag"] = etag
        if fault.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(data)
        await response.prepare(request)
        cut = len(data) if fault.cut_after is None else fault.cut_after
        await response.write(data[: cut // 2])
        if fault.hold is not None:
            await fault.hold.wait()
        await response.write(data[cut // 2 : cut])
        if fault.cut_after is not None:
            assert request.transport is not None
            request.transport.close()
        return response


@contextlib.asynccontextmanager
async def serving(site: Site) -> AsyncIterator[Site]:
    """The site on a free port of loopback."""
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", site.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield site
    finally:
        await runner.cleanup()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A plain web server."""
    async with serving(Site()) as started:
        yield started


class Hub(Site):
    """A model hub whose large files are on another host, as on the Hugging Face hub."""

    def __init__(self, cdn: Site) -> None:
        super().__init__()
        self.cdn = cdn

    def publish(self, files: dict[str, bytes], repository: str = "acme/tiny", revision: str = "main") -> None:
        """A commit of a repository."""
        siblings: list[dict[str, Any]] = []
        for name, data in files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
            path = f"/{repository}/resolve/{COMMIT}/{name}"
            if name.endswith(".safetensors"):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
                self.cdn.files[f"/blobs/{name}"] = data
                self.redirects[path] = f"{self.cdn.url}/blobs/{name}?X-Signature=abc"
            else:
                self.files[path] = data
            siblings.append(entry)
        self.files[f"/api/models/{repository}/revision/{revision}"] = json.dumps(
            {"id": repository, "sha": COMMIT, "siblings": siblings}
        ).encode()


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    """A hub with its content network."""
    async with serving(Site()) as cdn, serving(Hub(cdn)) as started:
        assert isinstance(started, Hub)
        yield started


Fetch = Callable[..., Awaitable[Progress]]


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    """Where the model shall be."""
    return tmp_path / "cache" / "0011223344556677"


@pytest.fixture
def fetch(dest: Path) -> Fetch:
    """Runs one fetch with the given settings to its end, on a fast clock. Gives its progress."""

    async def run(progress: Progress | None = None, speed: float = SPEED, **settings: Any) -> Progress:
        told = Progress() if progress is None else progress
        config = FetchConfig(**{"dest": dest, "retry_for_s": FOR_EVER_S, **settings})
        async with open_fetcher(config, told, "test", fast_timing(speed)) as fetcher:
            await fetcher.run()
        return told

    return run


def fast_timing(speed: float) -> Timing:
    """Seconds that are over sooner."""

    async def pass_by(seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), seconds / speed)

    return Timing(clock=lambda: time.monotonic() * speed, sleep=pass_by)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".quire-manifest.json"
    }


def exists(path: Path) -> bool:
    """Whether there is anything."""
    return path.exists()


async def until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    """Waits for something to become true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(POLL_S)
