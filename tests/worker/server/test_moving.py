"""How a stream leaves a worker and is taken in by another one, and what may not be taken in."""

import asyncio
import base64
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from quire_contract import names
from quire_contract.resume import HEADER_USAGE, PATH_RESUME
from quire_contract.trust import Trust
from tests.worker.server.replaying import REPLAY, Progress, Worker, progress_after

BODY: Any = {"model": "tiny", "prompt": "the fox", "max_tokens": 120, "seed": 1, "ignore_eos": True, "stream": True}
TEXT = json.dumps(BODY)
SLOW = ("--fake-decode-s-per-step", "0.3")
"""Half a minute for a stream of BODY: it is under way whenever the test comes to end it."""
JSON_TYPE = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def trust_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    Trust.generate().write(folder)
    return folder


@pytest.fixture(scope="module")
def token(trust_dir: Path) -> str:
    return Trust.read(trust_dir).token


@pytest.fixture(scope="module")
def flags(trust_dir: Path) -> tuple[str, ...]:
    endpoints = ("--kv-events-endpoint", "tcp://127.0.0.1:*", "--kv-replay-endpoint", "tcp://127.0.0.1:*")
    return ("--served-model-name", "tiny", "--trust-dir", str(trust_dir), *endpoints)


@pytest.fixture(scope="module")
def staying(launch_in_module: Callable[..., Any], flags: tuple[str, ...]) -> Any:
    """A worker that takes streams in."""
    return launch_in_module(*flags).wait_until_ready()


@pytest.fixture
def other(staying: Any, token: str, http: aiohttp.ClientSession) -> Worker:
    return Worker(staying.base, token, http)


async def begun(http: aiohttp.ClientSession, base: str, token: str, body: Any = BODY) -> aiohttp.ClientResponse:
    """A stream of which the first event is there."""
    headers = {"x-quire-token": token, **REPLAY}
    response = await http.post(f"{base}{names.PATH_COMPLETIONS}", json=body, headers=headers)
    assert response.status == 200, await response.text()
    return response


async def read_all(response: aiohttp.ClientResponse) -> list[str]:
    """The whole events until the stream ends or breaks."""
    text = b""
    try:
        async for chunk in response.content.iter_any():
            text += chunk
    except aiohttp.ClientError:
        response.close()  # a broken stream is what some tests are about
    return text.decode().split("\n\n")[:-1]


async def goes_on(other: Worker, events: list[str]) -> tuple[Progress, Progress]:
    """Where the stream ended, once it went on; and what it would have been."""
    moved = progress_after(names.PATH_COMPLETIONS, TEXT, events)
    for event in await other.go_on(moved.envelope):
        moved.take(event)
    return moved, progress_after(names.PATH_COMPLETIONS, TEXT, await other.begin(names.PATH_COMPLETIONS, TEXT))


def said(progress: Progress) -> str:
    chunks = [json.loads(data.removeprefix("data: ")) for data in progress.data if "[DONE]" not in data]
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


async def test_a_stream_that_outlives_the_drain_says_so_and_goes_on_elsewhere(
    http: aiohttp.ClientSession, launch: Callable[..., Any], flags: tuple[str, ...], token: str, other: Worker
) -> None:
    leaving = launch(*flags, *SLOW, "--drain-timeout", "0.1").wait_until_ready()
    stream = await begun(http, leaving.base, token)

    leaving.process.send_signal(signal.SIGTERM)
    events = await read_all(stream)
    moved, whole = await goes_on(other, events)

    assert events[-1] == ": migrate"
    assert 0 < len(moved.tokens[0]) == 120
    assert moved.tokens == whole.tokens
    assert said(moved) == said(whole)
    assert moved.data[-1] == "data: [DONE]"
    assert await asyncio.to_thread(leaving.wait) == 0
    assert "finish=abort" in leaving.log


async def test_after_a_drain_by_request_streams_move_and_those_that_cannot_go_on(
    http: aiohttp.ClientSession, launch: Callable[..., Any], flags: tuple[str, ...], token: str, other: Worker
) -> None:
    leaving = launch(*flags, *SLOW, "--drain-timeout", "0.1").wait_until_ready()
    key = {"x-quire-token": token}
    stream = await begun(http, leaving.base, token)
    silent = await http.post(f"{leaving.base}{names.PATH_COMPLETIONS}", json={**BODY, "max_tokens": 9}, headers=key)

    (await http.post(f"{leaving.base}{names.PATH_DRAIN}", headers=key)).close()
    late = await http.post(f"{leaving.base}{names.PATH_COMPLETIONS}", json=BODY, headers=key)
    late.close()
    events, others = await read_all(stream), await read_all(silent)
    moved, whole = await goes_on(other, events)

    assert (late.status, late.headers["x-quire-reason"]) == (503, "draining")
    assert events[-1] == ": migrate"
    assert said(moved) == said(whole)
    assert others[-1] == "data: [DONE]"
    assert not any(line.startswith(":") for event in others for line in event.split("\n"))


async def test_what_is_no_stream_is_refused_at_the_end_of_the_drain_so_that_it_is_asked_for_elsewhere(
    http: aiohttp.ClientSession, launch: Callable[..., Any], flags: tuple[str, ...], token: str
) -> None:
    leaving = launch(*flags, *SLOW, "--drain-timeout", "0.1").wait_until_ready()
    stream = await begun(http, leaving.base, token)
    whole = asyncio.create_task(begun_whole(http, leaving.base, token))
    await stream.content.readline()

    leaving.process.send_signal(signal.SIGTERM)
    status, headers = await whole
    await read_all(stream)

    assert status == 503
    assert headers["x-quire-reason"] == "draining"


async def begun_whole(http: aiohttp.ClientSession, base: str, token: str) -> tuple[int, Any]:
    headers = {"x-quire-token": token, **REPLAY}
    async with http.post(
        f"{base}{names.PATH_COMPLETIONS}", json={**BODY, "max_tokens": 1500, "stream": False}, headers=headers
    ) as response:
        return response.status, response.headers


async def test_a_stream_whose_engine_died_breaks_off_and_goes_on_elsewhere(
    http: aiohttp.ClientSession, launch: Callable[..., Any], flags: tuple[str, ...], token: str, other: Worker
) -> None:
    leaving = launch(*flags, *SLOW).wait_until_ready()
    stream = await begun(http, leaving.base, token)
    first = await stream.content.readuntil(b"\n\n")

    os.kill(leaving.engine_pid(), signal.SIGKILL)
    events = [first.decode().removesuffix("\n\n"), *await read_all(stream)]
    moved, whole = await goes_on(other, events)

    assert not any("error" in event or "[DONE]" in event or "migrate" in event for event in events)
    assert said(moved) == said(whole)
    assert await asyncio.to_thread(leaving.wait) == 1
    assert "Traceback" not in leaving.log


async def test_lines_are_for_routers_only(http: aiohttp.ClientSession, worker: Any) -> None:
    async with http.post(f"{worker.base}{names.PATH_COMPLETIONS}", json=BODY, headers=REPLAY) as response:
        text = await response.text()

    assert not any(line.startswith(":") for line in text.split("\n"))


async def test_only_a_router_of_the_release_may_let_a_stream_go_on(
    http: aiohttp.ClientSession, worker: Any, staying: Any, token: str, other: Worker
) -> None:
    plain = Worker(worker.base, token, http)

    refusals = [await plain.refusal({}), await other.refusal({}, headers=JSON_TYPE)]

    assert [status for status, _ in refusals] == [401, 401]
    assert {error["type"] for _, error in refusals} == {"authentication_error"}


async def test_an_answer_that_is_no_stream_tells_its_tokens_in_a_header(
    http: aiohttp.ClientSession, staying: Any, token: str
) -> None:
    url, body = f"{staying.base}{names.PATH_COMPLETIONS}", {**BODY, "stream": False}

    asked = await http.post(url, json=body, headers={"x-quire-token": token, **REPLAY})
    silent = await http.post(url, json=body, headers={"x-quire-token": token})

    usage = (await asked.json())["usage"]
    await silent.read()
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert asked.headers[HEADER_USAGE] == f"{usage['prompt_tokens']},{cached},120"
    assert HEADER_USAGE not in silent.headers


async def test_the_first_and_the_last_event_count_tokens(other: Worker) -> None:
    events = await other.begin(names.PATH_COMPLETIONS, TEXT)

    counts = [line for event in events for line in event.split("\n") if line.startswith(": u ")]
    assert [line.split()[-1] for line in counts] == ["0", "120"]
    assert counts[0] in events[0].split("\n")
    assert counts[1] in events[-1].split("\n")


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "another path": ({"path": "/v1/embeddings"}, "path"),
    "an unknown field": ({"colour": 1}, "colour"),
    "no state": ({"state": ""}, "state"),
    "a state of nobody": ({"state": "AAAA"}, "state"),
    "a long state": ({"state": "A" * 9000}, "state"),
    "a negative count": ({"num_events": -1}, "num_events"),
    "too few events": ({"num_events": 1, "choices": [{"index": 0, "token_ids": [70] * 9}]}, "num_events"),
    "a choice too many": ({"choices": [{"index": 1, "token_ids": []}]}, "choices[0].index"),
    "a choice twice": ({"choices": [{"index": 0, "token_ids": []}] * 2}, "choices[1].index"),
    "more tokens than may come": ({"choices": [{"index": 0, "token_ids": [70] * 121}]}, "choices[0].token_ids"),
    "a token outside the vocabulary": ({"choices": [{"index": 0, "token_ids": [70, 10**6]}]}, "choices[0].token_ids"),
    "a negative token": ({"choices": [{"index": 0, "token_ids": [-1]}]}, "choices[0].token_ids"),
    "a number of another kind": ({"choices": [{"index": 0, "token_ids": ["a"]}]}, "choices[0].token_ids[0]"),
    "a body that is no stream": ({"body": json.dumps({**BODY, "stream": False})}, "body"),
    "a field of the body": ({"body": json.dumps({**BODY, "top_p": 7})}, "top_p"),
}


@pytest.mark.parametrize(("changes", "field"), CHANGES.values(), ids=CHANGES.keys())
async def test_a_wrong_envelope_is_refused_by_its_field(other: Worker, changes: dict[str, Any], field: str) -> None:
    events = await other.begin(names.PATH_COMPLETIONS, TEXT)
    envelope = json.loads(progress_after(names.PATH_COMPLETIONS, TEXT, events[:4]).envelope)

    status, error = await other.refusal({**envelope, **changes})

    assert status == 400
    assert (error["type"], error["param"]) in {("invalid_request_error", field), ("invalid_request_error", None)}
    assert field in error["message"]


async def test_a_body_that_is_no_json_and_an_envelope_that_is_none_are_refused(other: Worker) -> None:
    events = await other.begin(names.PATH_COMPLETIONS, TEXT)
    envelope = json.loads(progress_after(names.PATH_COMPLETIONS, TEXT, events[:4]).envelope)

    refusals = [await other.refusal({**envelope, "body": "{"}), await other.refusal(b"[]"), await other.refusal(b"{")]

    assert [status for status, _ in refusals] == [400, 400, 400]


async def test_a_worker_with_another_tokenizer_does_not_take_the_stream(other: Worker) -> None:
    events = await other.begin(names.PATH_COMPLETIONS, TEXT)
    envelope = json.loads(progress_after(names.PATH_COMPLETIONS, TEXT, events[:4]).envelope)
    state = msgspec.msgpack.decode(base64.urlsafe_b64decode(envelope["state"] + "=="))
    state[4] = "0" * 64
    strange = base64.urlsafe_b64encode(msgspec.msgpack.encode(state)).decode().rstrip("=")

    status, error = await other.refusal({**envelope, "state": strange})

    assert (status, error["code"], error["param"]) == (409, "other_model", "state")


async def test_a_stream_of_many_tokens_goes_on_in_the_middle(other: Worker) -> None:
    text = json.dumps({**BODY, "max_tokens": 1500})
    events = await other.begin(names.PATH_COMPLETIONS, text)

    before = progress_after(names.PATH_COMPLETIONS, text, events[:1400])
    for event in await other.go_on(before.envelope):
        before.take(event)

    assert before.data == progress_after(names.PATH_COMPLETIONS, text, events).data
    assert PATH_RESUME == "/internal/resume"
