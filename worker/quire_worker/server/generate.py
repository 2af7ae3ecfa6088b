"""Every API that generates text: from body to engine to answer, streamed or not."""

import asyncio
import functools
import time
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
from aiohttp import web
from msgspec import UNSET

from quire_contract import names
from quire_contract.openai.bounds import MAX_BIAS
from quire_contract.openai.errors import CODE_DRAINING, ApiError, unauthorized
from quire_contract.openai.limits import Limits
from quire_contract.openai.model_checks import check_prompt_logprobs, check_vocabulary, resolve_max_tokens
from quire_contract.openai.multiples import check_multiples_in_text
from quire_contract.openai.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    StreamOptions,
    prompt_list,
    stop_strings,
)
from quire_contract.openai.responses import Usage, usage_of
from quire_contract.openai.structured import Grammar
from quire_contract.resume import MIGRATE_EVENT, ResumeEnvelope
from quire_worker.request import SamplingParams
from quire_worker.server import errors
from quire_worker.server.access import scoped_salt
from quire_worker.server.answers import Answer, Gathered, Head, ShownUsage
from quire_worker.server.asked import Asked, Showing, asked_chat, asked_completion, asked_message, asked_response
from quire_worker.server.body import read_as
from quire_worker.server.engine_client import EngineDeadError
from quire_worker.server.generation import Arrived, Generation, Job
from quire_worker.server.logprobs import TokensByNumber
from quire_worker.server.middleware import CALLER, SPAN
from quire_worker.server.parsing.dialect import Reading
from quire_worker.server.portions import num_logprobs, portions
from quire_worker.server.prompt_shown import NOTHING_MORE, Echo, Extras, ShownPrompt, echo_of
from quire_worker.server.replay_state import ReplayState, decoded, encoded
from quire_worker.server.resume import asks_for_replay, check_choices, max_envelope_bytes, read_envelope, usage_headers
from quire_worker.server.sampling import sampling_params
from quire_worker.server.served_model import ServedModel
from quire_worker.server.serving import Loaded, Serving
from quire_worker.server.told_answer import ToldAnswer

_INLINE_SCORES = 4096
"""Fewer log-probabilities become JSON on the event loop, and answers of fewer tokens."""
_REPLAYED_TOKEN = 8
"""What bringing a stream to where it was takes for a token, in tokens made into text."""
_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class Generate:
    """The handlers. They share one road; what differs between the APIs is in `asked`."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, asked_chat)

    async def completion(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, asked_completion)

    async def response(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, asked_response)

    async def message(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, asked_message)

    async def resume(self, request: web.Request) -> web.StreamResponse:
        """A stream of another worker goes on here. For routers of the release only."""
        if not request[CALLER].trusted:
            raise unauthorized("Only a router of this worker's release, with its token, may let a stream go on here.")
        arrived_s = self._serving.clock()
        with self._serving.request() as loaded:
            limits = self._serving.limits
            larger = request.clone(client_max_size=max_envelope_bytes(limits))
            envelope, asked = await read_as(read_envelope, larger, limits)
            try:
                return await self._answer(_Call(request, envelope.path, asked, loaded, arrived_s, envelope))
            except ApiError as error:
                raise asked.own_error(error) from None

    async def _handle(self, http: web.Request, read: Callable[[bytes, Limits], Asked]) -> web.StreamResponse:
        arrived_s = self._serving.clock()
        with self._serving.request() as loaded:
            asked = await read_as(read, http, self._serving.limits)
            try:
                return await self._answer(_Call(http, http.path, asked, loaded, arrived_s))
            except ApiError as error:
                raise asked.own_error(error) from None

    async def _answer(self, call: "_Call") -> web.StreamResponse:
        asked, loaded, body = call.asked, call.loaded, call.asked.body
        model_name = loaded.model.check_name(body.model)
        loaded.model.check_generates(call.path)
        check_vocabulary(body, loaded.model.vocab_size)
        serial = self._serving.next_serial()
        state = self._state(call, serial)
        job, reading = await self._job(call, state, serial)
        showing = Showing(await _extras(body, job, loaded), reading, loaded.model.text.token_text)
        vocabulary = TokensByNumber(loaded.model.text) if body.return_tokens_as_token_ids else loaded.model.text
        head = Head(id=state.id, created=state.created, model=model_name)
        answer = asked.make_answer(head, vocabulary, showing)
        generation = self._generation(job, body, loaded.model, reading)
        movable = self._serving.movable(generation, is_asked=call.envelope is not None or asks_for_replay(call.http))
        if not body.stream:
            with generation, movable:
                return await _whole(call.http, generation, answer, len(job.prompts) * job.n, self._serving.limits)
        if job.is_replayed:
            answer = told = _told(answer, call, job, state, generation)
        ends = [] if call.envelope is None else await _catch_up(told, call.envelope, generation, call)
        with generation, movable:
            return await _stream(call.http, generation, answer, asked, ends)

    def _state(self, call: "_Call", serial: int) -> ReplayState:
        """What the answer begins with, here or where it began."""
        model, prefix = call.loaded.model, call.asked.id_prefix
        if call.envelope is not None:
            return decoded(call.envelope.state, id_prefix=prefix, model=model.text_digest, limits=self._serving.limits)
        return ReplayState(
            id=f"{prefix}{uuid.uuid4().hex}",
            created=int(time.time()),
            seed=self._serving.seed(serial),
            model=model.text_digest,
            cached={},
        )

    async def _job(self, call: "_Call", state: ReplayState, serial: int) -> tuple[Job, Reading | None]:
        """Everything the engine needs, and how its text is read. ApiError for prompts that do not fit."""
        http, loaded, body = call.http, call.loaded, call.asked.body
        caller = http[CALLER]
        urgency = self._serving.urgency.decide(body, http.headers, trusted=caller.trusted)
        prompts = await loaded.tokeniser.prompts(body)
        check_prompt_logprobs(body, sum(map(len, prompts)), self._serving.limits)
        bad_words = await loaded.tokeniser.bad_words(body.bad_words or ())
        content = body.grammar
        reading = loaded.model.reading(body, prompts[0], None if content is None else content.text)
        grammar = _grammar(content, reading)
        cache_salt = scoped_salt(caller.cache_scope, body.cache_salt)
        if caller.trusted:
            cache_salt = http.headers.get(names.HEADER_CACHE_SALT, cache_salt)
        sampling = _ruling_out(_sampling(body, prompts, loaded.model, state.seed, bad_words), reading)
        if call.envelope is not None:
            check_choices(call.envelope.choices, sampling, body.num_choices, loaded.model.vocab_size)
        job = Job(
            request_id=caller.request_id,
            engine_id=f"{caller.request_id}-{serial}",
            route=call.path,
            arrived_s=call.arrived_s,
            prompts=prompts,
            sampling=sampling,
            n=body.num_choices,
            stops=stop_strings(body),
            include_stop=body.include_stop_str_in_output is True,
            cache_salt=cache_salt,
            urgency=urgency,
            log=self._serving.log_requests,
            only_prompts=body.requested_max_tokens == 0,
            shows_prompts=_shows_prompts(body),
            shows_token_ids=body.return_token_ids is True or (reading is not None and reading.reasons),
            grammar=None if grammar is None else grammar.text,
            grammar_field="" if grammar is None else grammar.field,
            model=body.model or loaded.model.names[0],
            span=http[SPAN],
            is_replayed=body.stream is True and (call.envelope is not None or asks_for_replay(http)),
            begun=None if call.envelope is None else call.envelope.choices,
            cached=_cached(state, prompts),
            is_streamed=body.stream is True,
        )
        return job, reading

    def _generation(self, job: Job, body: GenerationRequest, model: ServedModel, reading: Reading | None) -> Generation:
        skip_special = body.skip_special_tokens is not False
        shown = reading.shown_token_ids if reading is not None else frozenset()
        new_stream = functools.partial(model.new_stream, skip_special, shown)
        return Generation(
            job,
            self._serving.engine,
            self._serving.metrics,
            self._serving.clock,
            new_stream if _continues(body) else lambda _: new_stream(()),
        )


class _Call(NamedTuple):
    """One HTTP request, read."""

    http: web.Request
    path: str
    """Of the API, also where its stream goes on."""
    asked: Asked
    loaded: Loaded
    arrived_s: float
    envelope: ResumeEnvelope | None = None
    """Where the stream was when another worker left it."""


def _told(answer: Answer, call: _Call, job: Job, state: ReplayState, generation: Generation) -> ToldAnswer:
    def make_state() -> bytes:
        return encoded(msgspec.structs.replace(state, cached=generation.cached))

    num_choices = len(job.prompts) * job.n
    return ToldAnswer(answer, make_state if call.envelope is None else None, num_choices=num_choices)


async def _catch_up(told: ToldAnswer, envelope: ResumeEnvelope, generation: Generation, call: _Call) -> list[Arrived]:
    """The ends that the client has not been told of. ApiError 429 if too much waits to be done."""
    options = call.asked.body.stream_options or StreamOptions()

    def work() -> list[Arrived]:
        arrived = generation.again()
        return told.catch_up(arrived, envelope, _usage(generation), _shown_usage(generation, options))

    num_tokens = sum(len(choice.token_ids) for choice in envelope.choices)
    return await call.loaded.tokeniser.over_tokens(_REPLAYED_TOKEN * num_tokens, work)


def _cached(state: ReplayState, prompts: Sequence[list[int]]) -> dict[int, int]:
    return {prompt: min(count, len(prompts[prompt])) for prompt, count in state.cached.items() if prompt < len(prompts)}


def _grammar(content: Grammar | None, reading: Reading | None) -> Grammar | None:
    """What the whole text must match, and the field it comes from: a reading's grammar holds that of the content."""
    if reading is None:
        return content
    if reading.grammar is None:
        return None
    field = "tools" if content is None else content.field
    check_multiples_in_text(field, reading.grammar)  # of tools only where their schemas must be obeyed
    return Grammar(text=reading.grammar, field=field)


def _continues(body: GenerationRequest) -> bool:
    """Whether the answer's text goes on in the prompt's last word, so that its first space counts."""
    return isinstance(body, CompletionRequest) or body.continue_final_message is True


def _shows_prompts(body: GenerationRequest) -> bool:
    is_echo = isinstance(body, CompletionRequest) and body.echo is True
    return is_echo or body.prompt_logprobs is not None or body.return_token_ids is True


async def _extras(body: GenerationRequest, job: Job, loaded: Loaded) -> Extras:
    """What of the prompts is shown. ApiError 429 if too much waits to be detokenised."""
    if not _shows_prompts(body):
        return NOTHING_MORE
    echoes: list[Echo | None] = [None] * len(job.prompts)
    if isinstance(body, CompletionRequest) and body.echo:
        num_tokens = sum(map(len, job.prompts))
        echoes = [*await loaded.tokeniser.over_tokens(num_tokens, functools.partial(_echoes, body, job, loaded.model))]
    return Extras(
        prompts=[ShownPrompt(token_ids=ids, echo=echo) for ids, echo in zip(job.prompts, echoes, strict=True)],
        n=job.n,
        token_ids=body.return_token_ids is True,
        prompt_logprobs=body.prompt_logprobs,
        echoed_logprobs=body.num_logprobs,
    )


def _echoes(body: CompletionRequest, job: Job, model: ServedModel) -> list[Echo]:
    """A text comes back as it was sent, unless it was cut; token ids as they read."""
    sent = prompt_list(body.prompt) if body.truncate_prompt_tokens is None else [None] * len(job.prompts)
    echoes = []
    for ids, prompt in zip(job.prompts, sent, strict=True):
        text = prompt if isinstance(prompt, str) else None
        needed = ids if text is None or body.logprobs is not None else ()
        stream = model.new_stream(body.skip_special_tokens is not False, (), ())
        echoes.append(echo_of(needed, text, stream, ends=job.only_prompts))
    return echoes


def _sampling(
    body: GenerationRequest,
    prompts: Sequence[list[int]],
    model: ServedModel,
    seed: int,
    bad_words: tuple[tuple[int, ...], ...],
) -> list[SamplingParams]:
    """Parameters for each prompt: max_tokens is cut to what fits, and without a seed of the client's no two choices share one."""
    requested = body.requested_max_tokens
    if requested is None and model.defaults.max_tokens is not None:
        requested = min(model.defaults.max_tokens, model.max_model_len)
    param = "messages" if isinstance(body, ChatCompletionRequest) else "prompt"
    return [
        sampling_params(
            body,
            model.defaults,
            max_tokens=resolve_max_tokens(requested, len(ids), model.max_model_len, param=param),
            seed=seed + index * body.num_choices,
            eos_token_ids=model.eos_token_ids,
            bad_words=bad_words,
        )
        for index, ids in enumerate(prompts)
    ]


def _ruling_out(sampling: list[SamplingParams], reading: Reading | None) -> list[SamplingParams]:
    """The parameters with the tokens that the reading rules out, whatever the client's bias for them."""
    if reading is None or not reading.ruled_out:
        return sampling
    ruled_out = tuple((token_id, -MAX_BIAS) for token_id in reading.ruled_out)
    return [
        msgspec.structs.replace(
            params,
            logit_bias=(*(bias for bias in params.logit_bias if bias[0] not in reading.ruled_out), *ruled_out),
        )
        for params in sampling
    ]


def _usage(generation: Generation) -> Usage:
    return usage_of(generation.num_prompt_tokens, generation.num_generated_tokens, generation.num_cached_tokens)


async def _whole(
    http: web.Request, generation: Generation, answer: Answer, num_choices: int, limits: Limits
) -> web.Response:
    choices = [Gathered() for _ in range(num_choices)]
    num_shown = 0
    while not generation.done:
        for index, piece in await generation.next():
            choices[index].add(piece)
            num_shown += num_logprobs(piece)
        if num_shown > limits.max_logprob_entries:
            raise errors.too_many_logprobs(limits.max_logprob_entries)
    usage = _usage(generation)
    make = functools.partial(answer.whole, choices, usage)
    is_small = num_shown + generation.num_shown_scores + generation.num_generated_tokens < _INLINE_SCORES
    body = make() if is_small else await asyncio.to_thread(make)
    headers = usage_headers(http, usage.prompt_tokens, generation.num_cached_tokens, usage.completion_tokens)
    return web.Response(body=body, content_type="application/json", headers=headers)


async def _stream(
    http: web.Request, generation: Generation, answer: Answer, asked: Asked, ends: Sequence[Arrived]
) -> web.StreamResponse:
    """Errors before the first tokens are plain HTTP errors; later ones an event, and still [DONE]. `ends` come before all else."""
    options = asked.body.stream_options or StreamOptions()
    arrived = [*ends, *([] if generation.done else await generation.next())]
    response = web.StreamResponse(headers=_STREAM_HEADERS)
    await response.prepare(http)
    waiting = answer.begin(_usage(generation))
    num_shown = 0
    try:
        while True:
            for portion in portions(arrived):
                await response.write(waiting)
                await asyncio.sleep(0)  # others' turn; only a full buffer would wait
                waiting = await _events(generation, answer, portion, options)
                num_shown += sum(num_logprobs(piece) for _, piece in portion)
            if generation.done:
                break
            await response.write(waiting)
            waiting = b""
            arrived = await generation.next()
        end = functools.partial(answer.end, _usage(generation), include_usage=options.include_usage is True)
        await response.write(waiting + (end() if num_shown < _INLINE_SCORES else await asyncio.to_thread(end)))
    except EngineDeadError as error:
        if not isinstance(answer, ToldAnswer):
            await response.write(answer.error(errors.engine_dead(str(error))))
        elif http.transport is not None:
            http.transport.abort()  # the router goes on elsewhere; it must see that this was no orderly end
            return response
    except ApiError as error:
        moves = isinstance(answer, ToldAnswer) and error.code == CODE_DRAINING
        await response.write(MIGRATE_EVENT if moves else answer.error(asked.own_error(error)))
    await response.write_eof()
    return response


async def _events(generation: Generation, answer: Answer, arrived: Sequence[Arrived], options: StreamOptions) -> bytes:
    make = functools.partial(answer.events, arrived, _shown_usage(generation, options))
    has_scores = any(piece.scores for _, piece in arrived)
    if has_scores and generation.num_shown_scores >= _INLINE_SCORES:
        return await asyncio.to_thread(make)
    return make()


def _shown_usage(generation: Generation, options: StreamOptions) -> ShownUsage:
    if not options.include_usage:
        return UNSET
    return _usage(generation) if options.continuous_usage_stats else None
