"""What the official clients make of reasoning and tool calls in the answers of /v1/responses and /v1/messages: real clients, a real
socket, a reader that yields the parts it is told."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import anthropic
import openai
import pytest
from aiohttp import web

from quire_contract.openai.errors import ApiError
from quire_contract.openai.responses import usage_of
from quire_contract.openai.responses_requests import ResponsesRequest
from quire_worker.server.answers import Answer, Gathered, Head
from quire_worker.server.choice import Piece, TokenEntry
from quire_worker.server.messages_answer import BROKEN_INPUT, MessagesAnswer
from quire_worker.server.parts import ContentText, Part, ReasoningText, ToolArguments, ToolCallBegin
from quire_worker.server.responses_answer import ResponsesAnswer

PARTS: Sequence[Part] = (
    ReasoningText("They want "),
    ReasoningText("two."),
    ContentText("I "),
    ContentText("look."),
    ToolCallBegin(0, "call_a", "warmth"),
    ToolArguments(0, '{"city": '),
    ToolArguments(0, '"Bonn"}'),
    ToolCallBegin(1, "call_b", "now"),
)
USAGE = usage_of(20, 9, 16)
HEAD = Head(id="x_1234", created=1_700_000_000, model="m")


class Told:
    """A reader of texts that are numbers of parts."""

    num_reasoning_tokens: int | None = 5

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def take(self, piece: Piece) -> Sequence[Part]:
        return [self._parts[int(index)] for index in piece.text.split()]

    def take_entries(self) -> list[TokenEntry]:
        return []


class Words:
    """A vocabulary that nobody asks."""

    def token_text(self, token_id: int) -> str:
        return str(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        return b"%d" % token_id


def response(parts: Sequence[Part] = PARTS) -> Answer:
    request = ResponsesRequest(model="m", input="hi")
    return ResponsesAnswer(HEAD, Words(), request=request, reader=Told(parts))


def message(parts: Sequence[Part] = PARTS, stops: Sequence[str] = ()) -> Answer:
    return MessagesAnswer(HEAD, stops=stops, reader=Told(parts))


def piece(text: str, finish: str | None = None, stop: str | None = None) -> Piece:
    return Piece(text=text, token_ids=[], entries=[], finish_reason=finish, stop_reason=stop)


def pieces(number: int, each: int, **end: Any) -> list[Piece]:
    """All parts, `each` in a piece."""
    indices = [" ".join(map(str, range(at, min(at + each, number)))) for at in range(0, number, each)]
    return [*map(piece, indices), piece("", **{"finish": "stop", **end})]


def streamed(answer: Answer, arrived: Sequence[Piece], error: ApiError | None = None) -> bytes:
    data = answer.begin(USAGE) + b"".join(answer.events([(0, each)], None) for each in arrived)
    return data + (answer.end(USAGE, include_usage=False) if error is None else answer.error(error))


def whole(answer: Answer, arrived: Sequence[Piece]) -> dict[str, Any]:
    choice = Gathered()
    for each in arrived:
        choice.add(piece(each.text + " ", each.finish_reason, each.stop_reason))  # type: ignore[arg-type]
    made: dict[str, Any] = json.loads(answer.whole([choice], USAGE))
    return made


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[bytes], Awaitable[str]]]:
    """Answers every request with these bytes as a stream; gives the server's address."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(data: bytes) -> str:
            async def answer(request: web.BaseRequest) -> web.StreamResponse:
                await request.read()
                return web.Response(body=data, headers={"Content-Type": "text/event-stream"})

            runner = web.ServerRunner(web.Server(answer))
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return f"http://127.0.0.1:{runner.addresses[0][1]}"

        yield start


async def read_response(url: str) -> tuple[list[Any], Any]:
    events = []
    async with (
        openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client,
        client.responses.stream(model="m", input="hi") as stream,
    ):
        async for event in stream:
            events.append(event)
    return events, events[-1].response


async def read_message(url: str) -> tuple[list[Any], Any]:
    async with (
        anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0) as client,
        client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as stream,
    ):
        events = [event async for event in stream]
        return events, await stream.get_final_message()


@pytest.mark.parametrize("each", [1, 3, 8])
async def test_openais_client_puts_a_response_together_that_is_the_one_in_one_go(each: int, serve: Any) -> None:
    data = streamed(response(), pieces(8, each))

    events, seen = await read_response(await serve(data))
    expected = whole(response(), pieces(8, 8))

    assert [event.sequence_number for event in events if event.type.startswith("response.")] == list(range(len(events)))
    assert [item.type for item in seen.output] == ["reasoning", "message", "function_call", "function_call"]
    assert seen.output[0].content[0].text == "They want two."
    assert seen.output_text == "I look."
    assert [(call.call_id, call.name, call.arguments) for call in seen.output[2:]] == [
        ("call_a", "warmth", '{"city": "Bonn"}'),
        ("call_b", "now", ""),
    ]
    assert json.loads(data.splitlines()[-2].removeprefix(b"data: "))["response"] == expected
    assert (seen.usage.input_tokens_details.cached_tokens, seen.status) == (16, "completed")
    assert seen.usage.output_tokens_details.reasoning_tokens == 5


async def test_every_item_of_a_response_is_announced_and_closed_in_order(serve: Any) -> None:
    events, _ = await read_response(await serve(streamed(response(), pieces(8, 1))))

    kinds = [(event.type.removeprefix("response."), getattr(event, "output_index", None)) for event in events]

    assert kinds[:2] == [("created", None), ("in_progress", None)]
    assert kinds[2:8] == [
        ("output_item.added", 0),
        ("content_part.added", 0),
        ("reasoning_text.delta", 0),
        ("reasoning_text.delta", 0),
        ("reasoning_text.done", 0),
        ("content_part.done", 0),
    ]
    assert kinds[-5:] == [
        ("output_item.done", 2),
        ("output_item.added", 3),
        ("function_call_arguments.done", 3),
        ("output_item.done", 3),
        ("completed", None),
    ]


async def test_a_response_that_is_cut_is_incomplete_and_says_why(serve: Any) -> None:
    _, seen = await read_response(await serve(streamed(response(), pieces(4, 1, finish="length"))))

    assert (seen.status, seen.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert [item.status for item in seen.output] == ["completed", "incomplete"]


async def test_a_response_that_breaks_fails_with_what_was_complete(serve: Any) -> None:
    error = ApiError(500, "The engine is gone.")

    _, seen = await read_response(await serve(streamed(response(), [piece("0 2")], error)))

    assert (seen.status, seen.error.code, seen.error.message) == ("failed", "server_error", "The engine is gone.")
    assert [item.type for item in seen.output] == ["reasoning"]


async def test_a_response_of_nothing_is_an_empty_message(serve: Any) -> None:
    _, seen = await read_response(await serve(streamed(response(), [piece("", "stop")])))

    assert seen.output_text == ""
    assert [item.type for item in seen.output] == ["message"]


@pytest.mark.parametrize("each", [1, 3, 8])
async def test_anthropics_client_puts_a_message_together_that_is_the_one_in_one_go(each: int, serve: Any) -> None:
    _, seen = await read_message(await serve(streamed(message(), pieces(8, each))))
    expected = whole(message(), pieces(8, 8))

    assert [block.type for block in seen.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (seen.content[0].thinking, seen.content[1].text) == ("They want two.", "I look.")
    assert [(block.id, block.name, block.input) for block in seen.content[2:]] == [
        ("call_a", "warmth", {"city": "Bonn"}),
        ("call_b", "now", {}),
    ]
    assert [block["type"] for block in expected["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert seen.content[0].signature == expected["content"][0]["signature"]
    assert seen.content[2].input == expected["content"][2]["input"]
    assert (seen.stop_reason, expected["stop_reason"]) == ("tool_use", "tool_use")
    assert (seen.usage.input_tokens, seen.usage.cache_read_input_tokens, seen.usage.output_tokens) == (4, 16, 9)
    assert {name: expected["usage"][name] for name in ("input_tokens", "output_tokens")} == {
        "input_tokens": 4,
        "output_tokens": 9,
    }


@pytest.mark.parametrize(
    ("end", "reason", "sequence"),
    [
        ({}, "end_turn", None),
        ({"finish": "length"}, "max_tokens", None),
        ({"stop": "END"}, "stop_sequence", "END"),
        ({"stop": "other"}, "end_turn", None),
    ],
)
async def test_a_message_says_why_it_ended(end: Any, reason: str, sequence: str | None, serve: Any) -> None:
    parts = [ContentText("hi")]

    _, seen = await read_message(await serve(streamed(message(parts, ["END"]), pieces(1, 1, **end))))
    expected = whole(message(parts, ["END"]), pieces(1, 1, **end))

    assert (seen.stop_reason, seen.stop_sequence) == (reason, sequence)
    assert (expected["stop_reason"], expected["stop_sequence"]) == (reason, sequence)


async def test_a_message_that_breaks_raises_at_the_client(serve: Any) -> None:
    url = await serve(streamed(message(), [piece("2")], ApiError(503, "The engine is gone.")))

    with pytest.raises(anthropic.APIStatusError, match="The engine is gone"):
        await read_message(url)


def test_input_that_is_no_object_is_still_told() -> None:
    parts = [ToolCallBegin(0, "call_a", "warmth"), ToolArguments(0, '{"city": ')]

    made = whole(message(parts), pieces(2, 2))

    assert made["content"][0]["input"] == {BROKEN_INPUT: '{"city": '}
