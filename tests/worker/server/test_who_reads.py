"""The engine is told of each request whether its client reads tokens as they come. The stub engine's tokens say what it was told."""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tokenizers import Tokenizer

from quire_contract import names
from quire_contract.trust import Trust
from quire_worker.config import WorkerConfig
from quire_worker.server.worker import Worker
from tests.worker.server import replaying
from tests.worker.server.stub_engine import READ, UNREAD

STUB = Path(__file__).with_name("stub_engine.py")
TURNS = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    names.PATH_CHAT: {"messages": TURNS, "max_tokens": 2},
    names.PATH_COMPLETIONS: {"prompt": "hello", "max_tokens": 2},
    names.PATH_RESPONSES: {"input": "hello", "max_output_tokens": 2},
    names.PATH_MESSAGES: {"messages": TURNS, "max_tokens": 2},
}


@pytest.fixture
async def told(model_dir: Path, http: aiohttp.ClientSession, eventually: Any) -> AsyncIterator[Any]:
    """A worker in this process, as its router sees it, and where it listens."""
    trust = Trust.generate()
    config = WorkerConfig(model=model_dir, served_model_names=("tiny",), port=0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        worker = Worker(config, trust, listening, "test", engine_command=(sys.executable, str(STUB), "tells who reads"))
        running = asyncio.create_task(worker.run())
        base = f"http://127.0.0.1:{listening.getsockname()[1]}"

        async def ready() -> int:
            async with http.get(f"{base}/ready") as response:
                return response.status

        try:
            await eventually(ready, 200)
            yield replaying.Worker(base, trust.token, http), base, trust.token
        finally:
            running.cancel()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()


def letters(model_dir: Path) -> tuple[str, str]:
    """What the tokens of a request that is read and of one that is not are as text."""
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    return tokenizer.decode([READ]), tokenizer.decode([UNREAD])


@pytest.mark.parametrize("path", BODIES)
async def test_only_a_stream_is_told_to_be_read_as_it_comes(
    path: str, told: Any, http: aiohttp.ClientSession, model_dir: Path
) -> None:
    _, base, token = told
    read, unread = letters(model_dir)
    texts = []

    for stream in ({}, {"stream": False}, {"stream": True}):
        body = {"model": "tiny", **BODIES[path], **stream}
        async with http.post(base + path, json=body, headers={names.HEADER_TOKEN: token}) as response:
            assert response.status == 200, await response.text()
            texts.append(await response.text())

    assert [f'"{unread * 2}"' in text for text in texts] == [True, True, False]
    assert f'"{unread}"' not in texts[2]
    assert texts[2].count(f'"{read}"') >= 2


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_all_parts_of_a_request_are_told_alike(
    *, is_streamed: bool, told: Any, http: aiohttp.ClientSession, model_dir: Path
) -> None:
    _, base, token = told
    body = {"model": "tiny", "prompt": ["hello", "the fox"], "n": 2, "max_tokens": 2, "temperature": 1}

    async with http.post(
        base + names.PATH_COMPLETIONS, json={**body, "stream": is_streamed}, headers={names.HEADER_TOKEN: token}
    ) as response:
        text = await response.text()

    read, unread = letters(model_dir)
    assert text.count(f'"text":"{unread * 2}"') == (0 if is_streamed else 4)
    assert text.count(f'"text":"{read}"') == (8 if is_streamed else 0)


async def test_a_stream_that_goes_on_here_is_read_as_it_comes(told: Any) -> None:
    worker, _, _ = told
    text = json.dumps({"model": "tiny", **BODIES[names.PATH_CHAT], "stream": True})
    events = await worker.begin(names.PATH_CHAT, text)
    cut = next(number for number, event in enumerate(events, 1) if ": t 0" in event)

    before = replaying.progress_after(names.PATH_CHAT, text, events[:cut])
    rest = await worker.go_on(before.envelope)

    assert before.tokens == {0: [READ]}
    assert replaying.progress_after(names.PATH_CHAT, text, events[:cut] + rest).tokens == {0: [READ, READ]}
