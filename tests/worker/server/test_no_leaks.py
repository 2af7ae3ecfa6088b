"""Prompts, outputs, keys and headers stay out of logs, errors and metrics, whatever happens to a request, at the most talkative level."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from quire_contract.trust import Trust

KEY = "sk-marked-key-0123456789"
PROMPT = "markedprompt"
HEADER = "marked-header-value"
TALKATIVE = ("--log-level", "debug", "--enable-access-log", "--served-model-name", "tiny")
AUTH = {"Authorization": f"Bearer {KEY}", "X-Custom": HEADER, "Cookie": f"session={HEADER}"}


def requests() -> list[tuple[str, bytes, dict[str, str]]]:
    """Good ones, refused ones, broken ones, each with marks in them."""
    chat = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3}
    text = {"model": "tiny", "prompt": PROMPT, "max_tokens": 3, "logprobs": 2}
    bodies: list[tuple[str, Any]] = [
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, "stream": True}),
        ("/v1/completions", text),
        ("/v1/completions", {**text, "stop": [PROMPT], "cache_salt": PROMPT, "user": PROMPT}),
        ("/v1/completions", {**text, "prompt": PROMPT * 3000}),
        ("/v1/completions", {**text, "max_tokens": -1}),
        ("/v1/completions", {**text, "model": "other"}),
        ("/v1/chat/completions", {**chat, "messages": [{"role": PROMPT, "content": PROMPT}]}),
        ("/v1/chat/completions", {**chat, "messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}),
        ("/tokenize", {"prompt": PROMPT}),
    ]
    sent = [(path, json.dumps(body).encode(), AUTH) for path, body in bodies]
    broken = [
        ("/v1/completions", b'{"model": "tiny", "prompt": "' + PROMPT.encode(), AUTH),
        ("/v1/completions", PROMPT.encode() + b"\xff", AUTH),
        ("/v1/completions", PROMPT.encode(), {**AUTH, "Content-Encoding": "gzip"}),
        ("/v1/completions", b"{}", {"Authorization": f"Bearer {KEY}x", "x-api-key": f"{KEY}y", "X-Custom": HEADER}),
        ("/v1/completions", b"{}", {**AUTH, "X-Quire-Cache-Salt": HEADER, "X-Quire-Priority": HEADER}),
    ]
    return sent + broken


async def use(http: aiohttp.ClientSession, base: str, extra: dict[str, str]) -> None:
    """All of them, one that is left half-way, and bytes that are no HTTP."""
    for path, body, headers in requests():
        async with http.post(
            base + path, data=body, headers={"Content-Type": "application/json", **headers, **extra}
        ) as r:
            await r.read()
    left = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1900, "stream": True, "ignore_eos": True}
    async with http.post(f"{base}/v1/completions", json=left, headers={**AUTH, **extra}) as response:
        await response.content.readline()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(base.rpartition(":")[2]))
    writer.write(f"POST /v1/completions HTTP/1.1\r\nX-Custom {HEADER}\r\n\r\n{PROMPT}".encode())
    async with asyncio.timeout(120):
        await reader.read()
    writer.close()


@pytest.mark.parametrize("log_format", ["key-value", "json"])
async def test_nothing_a_client_sends_is_in_log_or_metrics(
    http: aiohttp.ClientSession, launch: Callable[..., Any], log_format: str
) -> None:
    worker = launch(*TALKATIVE, "--log-format", log_format, env={"QUIRE_API_KEY": KEY}).wait_until_ready()

    await use(http, worker.base, {})
    async with http.get(f"{worker.base}/metrics") as response:
        shown = await response.text()
    worker.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(worker.wait)

    seen = worker.log + shown
    assert code == 0
    assert "request finished" in worker.log
    assert [mark for mark in (KEY, PROMPT, HEADER) if mark in seen] == []
    assert "Bearer" not in seen


async def test_a_release_token_is_in_no_log(
    http: aiohttp.ClientSession, launch: Callable[..., Any], tmp_path: Path
) -> None:
    Trust.generate().write(tmp_path / "trust")
    trust = Trust.read(tmp_path / "trust")
    worker = launch(*TALKATIVE, "--trust-dir", str(tmp_path / "trust")).wait_until_ready()

    await use(http, worker.base, {"x-quire-token": trust.token})
    worker.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(worker.wait)

    marks = (trust.token, trust.curve_secret.decode(), KEY, PROMPT, HEADER)
    assert [mark for mark in marks if mark in worker.log] == []
