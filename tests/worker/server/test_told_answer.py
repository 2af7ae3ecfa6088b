"""Every format and API, every cut: what is made again from tokens is what was sent, however the tokens were made into text and messages."""

import codecs
import contextlib
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from quire_contract import names
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import StreamOptions, stop_strings
from quire_contract.openai.responses import Usage, usage_of
from quire_contract.resume import ResumeEnvelope
from quire_worker.engine.messages import ChoiceOutput, Submit
from quire_worker.request import SamplingParams, TokenLogprobs
from quire_worker.server.answers import Head
from quire_worker.server.asked import Asked, Showing, asked_chat, asked_completion, asked_message, asked_response
from quire_worker.server.generation import Generation, Job
from quire_worker.server.mailbox import Mail, Mailbox
from quire_worker.server.metrics import Metrics
from quire_worker.server.parsing.dialect import Dialect
from quire_worker.server.parsing.formats import FORMATS
from quire_worker.server.parsing.scripts import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEP
from quire_worker.server.parsing.think_script import THINK
from quire_worker.server.prompt_shown import NOTHING_MORE
from quire_worker.server.told_answer import ToldAnswer
from tests.worker.server.replaying import Progress, progress_after

CALL = '{"name": "clock", "arguments": {"a": [1, "\\u00e9é"]}}'
THOUGHT = "<think>\nThey want the time 🕰. </think>\n\n"
TEXTS = {
    "hermes": f"{THOUGHT}I look. <tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>",
    "llama3_json": f"{CALL.replace('arguments', 'parameters')}; {CALL}",
    "mistral_v3": f"[TOOL_CALLS] [{CALL}, {CALL}]",
    "mistral_v11": '[TOOL_CALLS]clock[ARGS]{"a": 1}[TOOL_CALLS]clock[ARGS]{}',
    "deepseek_v3": f'Hm é{CALLS_BEGIN}{CALL_BEGIN}function{SEP}clock\n```json\n{{"a": 1}}\n```{CALL_END}{CALLS_END}',
    "deepseek_v31": f'{CALLS_BEGIN}{CALL_BEGIN}clock{SEP}{{"a": 1}}{CALL_END}{CALLS_END}',
    "qwen3_coder": "So: <tool_call>\n<function=clock>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
}
PLAIN = f"{THOUGHT}A <tool_ for 한국어 and 🦊🦊, <b> then <tool_call> no call.\n  "
APIS = {
    names.PATH_CHAT: asked_chat,
    names.PATH_COMPLETIONS: asked_completion,
    names.PATH_RESPONSES: asked_response,
    names.PATH_MESSAGES: asked_message,
}
PARAMETERS: Any = {"type": "object", "properties": {"a": {}}}
FUNCTION: Any = {"name": "clock", "parameters": PARAMETERS}
BODIES: dict[str, Any] = {
    names.PATH_CHAT: {
        "messages": [{"role": "user", "content": "?"}],
        "tools": [{"type": "function", "function": FUNCTION}],
    },
    names.PATH_COMPLETIONS: {"prompt": "?"},
    names.PATH_RESPONSES: {"input": "?", "tools": [{"type": "function", **FUNCTION}]},
    names.PATH_MESSAGES: {
        "messages": [{"role": "user", "content": "?"}],
        "tools": [{"name": "clock", "input_schema": PARAMETERS}],
        "max_tokens": 500,
    },
}
HEAD_ID = "0123456789abcdef" * 2


class Vocabulary:
    """Token i is `pieces[i]`; they need not be whole characters."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    def token_text(self, token_id: int) -> str:
        return self._pieces[token_id].decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id]

    def stream(self, prompt: Sequence[int]) -> "_Stream":
        del prompt
        return _Stream(self._pieces)


class _Stream:
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._pieces[token_id])

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ScriptedEngine:
    """Says the same tokens to everybody, a few at a time, and leaves out what a choice brings."""

    stats = None
    dtype = "none"

    def __init__(self, num_tokens: int, group: int, *, is_length: bool) -> None:
        self._num_tokens, self._group, self._is_length = num_tokens, group, is_length

    @contextlib.contextmanager
    def generating(self, submits: Sequence[Submit]) -> Iterator[Mailbox]:
        mailbox = Mailbox()
        for submit in submits:
            for output in self._outputs(submit):
                mailbox.put(Mail(0.0, output))
        yield mailbox

    def abort_choice(self, request_id: str, choice: int) -> None:
        """It has said all at once."""

    def _outputs(self, submit: Submit) -> Iterator[ChoiceOutput]:
        ids = list(range(self._num_tokens))[len(submit.output_token_ids) :]
        for choice in range(submit.n):
            for start in range(0, max(1, len(ids)), self._group):
                part = ids[start : start + self._group]
                is_last = start + self._group >= len(ids)
                yield ChoiceOutput(
                    request_id=submit.request_id,
                    choice=choice,
                    token_ids=part,
                    logprobs=None
                    if submit.sampling.logprobs is None
                    else [TokenLogprobs(-float(i), 1, (), ()) for i in part],
                    finish_reason=("length" if self._is_length else "repetition") if is_last else None,
                )


class Case:
    """One request, and the tokens of its answer."""

    def __init__(self, path: str, name: str, text: str, seed: int, **body: Any) -> None:
        draw, data = random.Random(seed), text.encode()
        self._pieces: list[bytes] = []
        while data:
            size = draw.choice([1, 1, 2, 3, 5, 8])
            self._pieces.append(data[:size])
            data = data[size:]
        self._path = path
        self._text = json.dumps({"model": "m", "stream": True, **BODIES[path], **body})
        self._dialect = Dialect(FORMATS[name], THINK, {})
        self._is_length = draw.random() < 0.5

    async def events(self, envelope: ResumeEnvelope | None = None, group: int = 1) -> list[str]:
        """Of the whole stream, or behind where it was left."""
        asked: Asked = APIS[self._path](self._text.encode(), Limits())
        body, vocabulary = asked.body, Vocabulary(self._pieces)
        reading = None if self._path == names.PATH_COMPLETIONS else self._dialect.reading(body, "")  # type: ignore[arg-type]
        showing = Showing(NOTHING_MORE, reading, vocabulary.token_text)
        head = Head(id=f"{asked.id_prefix}{HEAD_ID}", created=1, model="m")
        answer = asked.make_answer(head, vocabulary, showing)
        params = SamplingParams(
            max_tokens=len(self._pieces) + (not self._is_length),
            logprobs=body.num_logprobs,
            min_tokens=body.min_tokens or 0,
            temperature=0,
        )
        job = Job(
            request_id="r", engine_id="r", route=self._path, arrived_s=0.0, prompts=[[1]], sampling=[params], n=body.num_choices,
            stops=stop_strings(body), shows_token_ids=reading is not None, log=False, is_replayed=True,
            begun=None if envelope is None else envelope.choices,
        )  # fmt: skip
        engine: Any = ScriptedEngine(len(self._pieces), group, is_length=self._is_length)
        generation = Generation(job, engine, Metrics("m", "0"), lambda: 0.0, vocabulary.stream)
        told = ToldAnswer(answer, (lambda: b"AA") if envelope is None else None, num_choices=body.num_choices)
        usage = (body.stream_options or StreamOptions()).include_usage is True
        return await _streamed(told, generation, envelope, include_usage=usage)

    def after(self, events: list[str]) -> Progress:
        return progress_after(self._path, self._text, events)


async def _streamed(
    told: ToldAnswer, generation: Generation, envelope: ResumeEnvelope | None, *, include_usage: bool
) -> list[str]:
    def usage() -> Usage:
        return usage_of(1, generation.num_generated_tokens, 0)

    ends = [] if envelope is None else told.catch_up(generation.again(), envelope, usage(), None)
    with generation:
        arrived = [*ends, *([] if generation.done else await generation.next())]
        data = told.begin(usage_of(1, 0, 0)) + told.events(arrived, None)
        while not generation.done:
            data += told.events(await generation.next(), None)
    return (data + told.end(usage(), include_usage=include_usage)).decode().removesuffix("\n\n").split("\n\n")


def cases() -> Iterator[Any]:
    for path in APIS:
        for name, text in TEXTS.items():
            yield pytest.param(path, name, text, {}, id=f"{path} {name}")
        yield pytest.param(path, "hermes", PLAIN, {}, id=f"{path} plain")
        stops = {names.PATH_RESPONSES: {}, names.PATH_MESSAGES: {"stop_sequences": ["🦊,", "> th"]}}.get(
            path, {"stop": ["🦊,", "> th"]}
        )
        yield pytest.param(path, "hermes", PLAIN, stops, id=f"{path} stops")
    chat: dict[str, Any] = {"logprobs": True}
    yield pytest.param(names.PATH_CHAT, "hermes", TEXTS["hermes"], chat, id="chat logprobs of calls")
    yield pytest.param(names.PATH_CHAT, "hermes", PLAIN, {**chat, "stop": ["> th", "an"]}, id="chat logprobs and stops")
    yield pytest.param(
        names.PATH_COMPLETIONS, "hermes", PLAIN, {"logprobs": 0, "stop": ["> the", "foxes"]}, id="logprobs and stops"
    )
    yield pytest.param(names.PATH_CHAT, "hermes", TEXTS["hermes"], {"n": 2, "temperature": 1}, id="two choices")


@pytest.mark.parametrize(("path", "name", "text", "body"), list(cases()))
@pytest.mark.parametrize("seed", range(2))
async def test_after_any_cut_what_follows_is_what_would_have_followed(
    path: str, name: str, text: str, body: dict[str, Any], seed: int
) -> None:
    case = Case(path, name, text, seed, **body)
    events = await case.events()
    whole = case.after(events)

    for cut in {*range(1 + seed, len(events), 2), *range(max(1, len(events) - 12), len(events))}:
        progress = case.after(events[:cut])
        for event in await case.events(progress.decoded, group=1 + cut % 4):
            progress.take(event)

        assert sorted(progress.data) == sorted(whole.data) if "n" in body else progress.data == whole.data, cut
        assert (progress.tokens, progress.finished) == (whole.tokens, whole.finished), cut
        assert progress.usage[-1] == whole.usage[-1], cut


@pytest.mark.parametrize(("path", "name", "text", "body"), list(cases()))
async def test_the_events_do_not_depend_on_how_tokens_arrived(
    path: str, name: str, text: str, body: dict[str, Any]
) -> None:
    case = Case(path, name, text, 5, **body)

    one_by_one, grouped = await case.events(), await case.events(group=3)

    assert grouped == one_by_one or "n" in body
    assert case.after(grouped).tokens == case.after(one_by_one).tokens
