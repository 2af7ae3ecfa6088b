"""The layer that filters prompts before anybody reads them, and answers before their client does.

A call to which no filter applies passes untouched; what its answer says is not looked at.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from concurrent.futures import Executor
from typing import Any

import msgspec
from multidict import CIMultiDict

from quire_contract import names
from quire_contract.openai.errors import ApiError, unavailable
from quire_contract.openai.limits import Limits
from quire_contract.router_config import RouterConfig
from quire_contract.routing import PATHS_WITH_PROMPT, routing_fields
from quire_router.answer import Answer, BrokenStreamError, Source
from quire_router.call import Call, Outcome
from quire_router.filtering.channels import Asked, Channels, Event, Piece, events_of
from quire_router.filtering.chat_stream import ChatStream
from quire_router.filtering.findings import Count, Findings
from quire_router.filtering.gate import Gate
from quire_router.filtering.messages_stream import MessagesStream
from quire_router.filtering.moderator import Moderator
from quire_router.filtering.prompts import Filtered, filter_prompt, refusal
from quire_router.filtering.responses_stream import ResponsesStream
from quire_router.filtering.rules import Applied, FilterCompiler, Stage
from quire_router.filtering.text_filter import Rule
from quire_router.filtering.token_ids import Readable, TokenReaders
from quire_router.filtering.whole import answer_texts, empty_answer, filter_answer
from quire_router.live_config import LiveConfig

INLINE_BYTES = 4096
"""Bodies up to this size are filtered on the event loop; handing them to a thread would cost more."""
LONG_BYTES = 256 * 1024
"""Longer ones take up to three seconds for each megabyte and have threads of their own: nobody with less waits behind them."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Of an answer that is no stream: it is read whole before it is filtered."""
MAX_EVENT_BYTES = 256 * 1024
"""Longer parts of a stream are filtered in a thread."""

PATHS_WITH_IDS = frozenset({names.PATH_COMPLETIONS, names.PATH_EMBEDDINGS})
"""Where a prompt may be token ids."""
_NOBODY = Readable(targets=(), tokens=())

_NOT_OF_THE_API = (KeyError, TypeError, AttributeError, IndexError)
"""What answers lead to that are not of the form that their API has."""

Stream = ChatStream | MessagesStream | ResponsesStream


class FilterLayer:
    """One for the process."""

    def __init__(
        self,
        *,
        live: LiveConfig,
        compiler: FilterCompiler,
        moderator: Moderator,
        executor: Executor,
        long_executor: Executor,
        limits: Limits,
        count: Count,
        readers: TokenReaders,
    ) -> None:
        """`executor` bounds how much is filtered at once beside the event loop, `long_executor` the same for what is long."""
        self._readers = readers
        self._compiler = compiler
        self._moderator = moderator
        self._executor = executor
        self._long_executor = long_executor
        self._limits = limits
        self._count = count
        self._filters = compiler.compiled(live.settings.filters)
        self.is_on = bool(live.settings.filters)
        """Whether there are filters."""
        live.follow(self._follow)

    def answer(self, call: Call, outcome: Outcome, inner: Source) -> Awaitable[Answer]:
        """The inner answer, filtered, to the call, filtered. ApiError 400 if the prompt is blocked."""
        if not self.is_on:
            return inner(call, outcome)
        tenant = None if call.tenant is None else call.tenant.entry.id
        prompt = self._filters.applying("prompt", call.model, tenant)
        output = self._filters.applying("output", call.model, tenant)
        if not prompt and not output:
            return inner(call, outcome)
        return self._filtered(call, outcome, inner, prompt, output)

    async def _filtered(self, call: Call, outcome: Outcome, inner: Source, prompt: Applied, output: Applied) -> Answer:
        findings = Findings(outcome, self._count)
        if prompt:
            call = await self._filtered_call(call, prompt, findings)
        answer = await inner(call, outcome)
        if output and call.path in PATHS_WITH_PROMPT and answer.status == 200:
            try:
                answer = await self._filtered_answer(call, answer, output, findings, outcome)
            except BaseException:
                await answer.close()
                raise
        if outcome.flags:
            answer.headers[names.HEADER_FLAGS] = ",".join(outcome.flags)
        return answer

    def _follow(self, config: RouterConfig) -> None:
        entries = [] if config.settings is None else config.settings.filters
        self._filters, self.is_on = self._compiler.compiled(entries), bool(entries)
        self._moderator.keep_only(frozenset(entry.hook.url for entry in entries if entry.hook is not None))

    async def _filtered_call(self, call: Call, applied: Applied, findings: Findings) -> Call:
        readable = self._readers.of(call.targets) if call.path in PATHS_WITH_IDS else _NOBODY
        filtered: Filtered = await self._beside(len(call.body), filter_prompt, call.body, applied, readable.tokens)
        for hit in filtered.hits:
            findings.note(hit.name, "prompt", hit.action)
        blocking = next((hit for hit in filtered.hits if hit.action == "block"), None)
        if blocking is not None:
            raise refusal(blocking.name, blocking.place or None)
        refused = await self._ask(applied, "prompt", call, filtered.texts, findings)
        if refused is not None:
            raise refusal(refused, None)
        if filtered.has_ids and readable.tokens and applied.needs_text is not None:
            call = msgspec.structs.replace(call, targets=readable.targets)
        if filtered.body is call.body:
            return call
        fields = call.fields
        if fields is not None:
            fields = await self._beside(len(filtered.body), routing_fields, call.path, filtered.body, self._limits)
        return msgspec.structs.replace(call, body=filtered.body, fields=fields)

    async def _ask(
        self,
        applied: Applied,
        stage: Stage,
        call: Call,
        texts: Sequence[str],
        findings: Findings,
        *,
        fails: bool = True,
    ) -> str | None:
        """The name of the moderator that refuses these texts. With `fails`, ApiError 503 if one that must be asked does not answer."""
        for rule in applied.hooks if texts else ():
            verdict = await self._moderator.ask(rule, stage, call, texts)
            if verdict == "allow":
                continue
            findings.note(rule.name, stage, "flag" if verdict == "flag" else "block")
            if verdict == "failed" and fails:
                raise unavailable(
                    f"The moderator of content filter {rule.name!r} does not answer.", "moderation_unavailable"
                )
            if verdict != "flag":
                return rule.name
        return None

    async def _filtered_answer(
        self, call: Call, answer: Answer, applied: Applied, findings: Findings, outcome: Outcome
    ) -> Answer:
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise _unreadable("it is compressed")

        def note(rule: Rule) -> None:
            findings.note(rule.name, "output", rule.action)

        asked = Asked.of(call.body, call.path)
        channels = Channels(applied.rules, note, is_json=asked.is_json)
        if answer.is_events:
            stream = _stream_of(call.path, channels, asked, outcome)
            return answer.through(self._filtered_parts(call, answer, stream, applied, findings, outcome))
        try:
            body = answer.body if answer.body is not None else await _whole_body(answer)
            filtered = await self._filtered_body(call, body, channels, applied, findings)
        finally:
            await answer.close()
        return Answer(status=answer.status, headers=CIMultiDict(answer.headers), body=filtered)

    async def _filtered_body(
        self, call: Call, body: bytes, channels: Channels, applied: Applied, findings: Findings
    ) -> bytes:
        said: dict[str, Any] = await self._beside(len(body), _filtered_object, call.path, body, channels)
        if applied.hooks:
            refused = {
                choice
                for choice, texts in answer_texts(call.path, said).items()
                if await self._ask(applied, "output", call, texts, findings) is not None
            }
            if refused:
                empty_answer(call.path, said, refused)
        return msgspec.json.encode(said)

    async def _filtered_parts(
        self, call: Call, answer: Answer, stream: Stream, applied: Applied, findings: Findings, outcome: Outcome
    ) -> AsyncGenerator[bytes, None]:
        assert answer.parts is not None, "a stream has parts"
        gate = self._gate(call, stream, applied, findings)
        async for part in answer.parts:
            out = await self._sent(part, stream, gate)
            if stream.is_over:
                out += await _given(gate, stream.end()) + await _left(gate)
                outcome.is_cut = True
                await answer.close()
                yield out
                return
            if out:
                yield out
        if left := await _left(gate):
            yield left

    async def _sent(self, part: bytes, stream: Stream, gate: Gate | None) -> bytes:
        """What the client may have, now that these events have come. A moderator may end the stream between two of them."""
        weight = len(part) * INLINE_BYTES / MAX_EVENT_BYTES
        if gate is None:
            pieces: list[Piece] = await self._beside(weight, _pieces_of, part, stream)
            return b"".join(piece.data for piece in pieces)
        out = b""
        for event in events_of(part):
            out += await _given(gate, await self._beside(weight, _taken, event, stream))
            if stream.is_over:
                break
        return out

    def _gate(self, call: Call, stream: Stream, applied: Applied, findings: Findings) -> Gate | None:
        if not applied.hooks:
            return None

        async def ask(text: str) -> bool:
            return await self._ask(applied, "output", call, [text], findings, fails=False) is None

        check_chars = min(rule.hook.check_chars for rule in applied.hooks)
        return Gate(ask, stream.withhold, check_chars=check_chars)

    async def _beside(self, num_bytes: float, work: Any, *values: Any) -> Any:
        """Do it here if it is little, otherwise in a thread."""
        if num_bytes <= INLINE_BYTES:
            return work(*values)
        executor = self._executor if num_bytes <= LONG_BYTES else self._long_executor
        return await asyncio.get_running_loop().run_in_executor(executor, work, *values)


def _stream_of(path: str, channels: Channels, asked: Asked, outcome: Outcome) -> Stream:
    if path == names.PATH_RESPONSES:
        return ResponsesStream(channels, outcome)
    if path == names.PATH_MESSAGES:
        return MessagesStream(channels, outcome)
    return ChatStream(channels, asked, outcome)


async def _given(gate: Gate | None, pieces: Sequence[Piece]) -> bytes:
    return b"".join([piece.data for piece in pieces] if gate is None else await gate.take(pieces))


async def _left(gate: Gate | None) -> bytes:
    return b"" if gate is None else b"".join(await gate.end())


def _pieces_of(part: bytes, stream: Stream) -> list[Piece]:
    return [piece for event in events_of(part) if not stream.is_over for piece in _taken(event, stream)]


def _taken(event: Event, stream: Stream) -> list[Piece]:
    try:
        return stream.take(event)
    except _NOT_OF_THE_API:
        raise BrokenStreamError("sent an event that the content filters do not understand") from None


def _filtered_object(path: str, body: bytes, channels: Channels) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _unreadable("it is no JSON object") from None
    try:
        filter_answer(path, said, channels)
    except _NOT_OF_THE_API:
        raise _unreadable("it is none of this API") from None
    return said


async def _whole_body(answer: Answer) -> bytes:
    assert answer.parts is not None, "an answer that is not whole has parts"
    parts, size = [], 0
    async for part in answer.parts:
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise _unreadable(f"it is longer than {MAX_ANSWER_BYTES} bytes")
    return b"".join(parts)


def _unreadable(why: str) -> ApiError:
    """What cannot be read must not pass a filter."""
    return ApiError(
        502,
        f"The worker's answer cannot be filtered: {why}.",
        type="server_error",
        code="unfiltered_answer",
    )
