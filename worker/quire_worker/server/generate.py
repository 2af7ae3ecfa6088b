"""POST /v1/chat/completions and /v1/completions: from body to engine to answer, streamed or not."""

import functools
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

from aiohttp import web
from msgspec import UNSET

from quire_contract import names
from quire_contract.openai.errors import ApiError, invalid
from quire_contract.openai.model_checks import check_vocabulary, resolve_max_tokens
from quire_contract.openai.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    StreamOptions,
    stop_strings,
)
from quire_contract.openai.responses import Usage, usage_of
from quire_worker.request import SamplingParams
from quire_worker.server import errors
from quire_worker.server.access import scoped_salt
from quire_worker.server.answers import Answer, ChatAnswer, CompletionAnswer, Gathered, Head, ShownUsage
from quire_worker.server.body import decoded, read_body
from quire_worker.server.engine_client import EngineDeadError
from quire_worker.server.generation import Generation, Job
from quire_worker.server.middleware import CALLER, SPAN
from quire_worker.server.sampling import sampling_params
from quire_worker.server.served_model import ServedModel
from quire_worker.server.serving import Loaded, Serving

RequestT = TypeVar("RequestT", ChatCompletionRequest, CompletionRequest)
_PRIORITY = re.compile(r"-?[0-9]{1,9}")
_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class Generate:
    """The two handlers."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, ChatCompletionRequest, "chatcmpl", ChatAnswer)

    async def completion(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, CompletionRequest, "cmpl", CompletionAnswer)

    async def _handle(
        self, http: web.Request, kind: type[RequestT], prefix: str, make_answer: Callable[..., Answer]
    ) -> web.StreamResponse:
        arrived_s = self._serving.clock()
        with self._serving.request() as loaded:
            body = await decoded(kind, await read_body(http), self._serving.limits)
            model_name = loaded.model.check_name(body.model)
            check_vocabulary(body, loaded.model.vocab_size)
            job = await self._job(http, body, loaded, arrived_s)
            head = Head(id=f"{prefix}-{uuid.uuid4().hex}", created=int(time.time()), model=model_name)
            answer = make_answer(head, loaded.model.text, logprobs=body.num_logprobs is not None)
            with self._generation(job, body, loaded.model) as generation:
                if body.stream:
                    return await _stream(http, generation, answer, body.stream_options or StreamOptions())
                return await _whole(generation, answer, len(job.prompts) * job.n)

    async def _job(self, http: web.Request, body: GenerationRequest, loaded: Loaded, arrived_s: float) -> Job:
        """Everything the engine needs. ApiError for prompts that do not fit."""
        caller = http[CALLER]
        prompts = await loaded.tokeniser.prompts(body)
        serial = self._serving.next_serial()
        cache_salt, priority = scoped_salt(caller.cache_scope, body.cache_salt), 0
        if caller.trusted:
            cache_salt = http.headers.get(names.HEADER_CACHE_SALT, cache_salt)
            priority = _priority(http.headers.get(names.HEADER_PRIORITY, "0"))
        return Job(
            request_id=caller.request_id,
            engine_id=f"{caller.request_id}-{serial}",
            route=http.path,
            arrived_s=arrived_s,
            prompts=prompts,
            sampling=_sampling(body, prompts, loaded.model, self._serving.seed(serial)),
            n=body.num_choices,
            stops=stop_strings(body),
            include_stop=body.include_stop_str_in_output is True,
            cache_salt=cache_salt,
            priority=priority,
            log=self._serving.log_requests,
            model=body.model or loaded.model.names[0],
            span=http[SPAN],
        )

    def _generation(self, job: Job, body: GenerationRequest, model: ServedModel) -> Generation:
        skip_special = body.skip_special_tokens is not False
        return Generation(
            job,
            self._serving.engine,
            self._serving.metrics,
            self._serving.clock,
            functools.partial(model.new_stream, skip_special)
            if _continues(body)
            else lambda _: model.new_stream(skip_special, ()),
        )


def _continues(body: GenerationRequest) -> bool:
    """Whether the answer's text goes on in the prompt's last word, so that its first space counts."""
    return isinstance(body, CompletionRequest) or body.continue_final_message is True


def _sampling(
    body: GenerationRequest, prompts: Sequence[list[int]], model: ServedModel, seed: int
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
        )
        for index, ids in enumerate(prompts)
    ]


def _priority(text: str) -> int:
    if not _PRIORITY.fullmatch(text):
        raise invalid(names.HEADER_PRIORITY, "must be a whole number of at most 9 digits")
    return int(text)


def _usage(generation: Generation) -> Usage:
    return usage_of(generation.num_prompt_tokens, generation.num_generated_tokens, generation.num_cached_tokens)


async def _whole(generation: Generation, answer: Answer, num_choices: int) -> web.Response:
    choices = [Gathered() for _ in range(num_choices)]
    while not generation.done:
        for index, piece in await generation.next():
            choices[index].add(piece)
    return web.Response(body=answer.whole(choices, _usage(generation)), content_type="application/json")


async def _stream(
    http: web.Request, generation: Generation, answer: Answer, options: StreamOptions
) -> web.StreamResponse:
    """Errors before the first tokens are plain HTTP errors; later ones an event, and still [DONE]."""
    arrived = await generation.next()
    response = web.StreamResponse(headers=_STREAM_HEADERS)
    await response.prepare(http)
    begin = answer.begin(_usage(generation))
    try:
        while not generation.done:
            await response.write(begin + answer.events(arrived, _shown_usage(generation, options)))
            begin = b""
            arrived = await generation.next()
        events = begin + answer.events(arrived, _shown_usage(generation, options))
        await response.write(events + answer.end(_usage(generation), include_usage=options.include_usage is True))
    except EngineDeadError as error:
        await response.write(answer.error(errors.engine_dead(str(error))))
    except ApiError as error:
        await response.write(answer.error(error))
    await response.write_eof()
    return response


def _shown_usage(generation: Generation, options: StreamOptions) -> ShownUsage:
    if not options.include_usage:
        return UNSET
    return _usage(generation) if options.continuous_usage_stats else None
