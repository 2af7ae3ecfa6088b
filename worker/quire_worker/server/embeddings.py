"""POST /v1/embeddings, /v1/rerank and /v1/score, and the other paths by which clients know them: from body to engine to answer.

A cross-encoder reads each pair of texts as one input. With a model that makes embeddings, texts are embedded one by one, and a pair's score
is the cosine of its vectors.
"""

import asyncio
import functools
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec
from aiohttp import web

from quire_contract import names
from quire_contract.openai.embedding_requests import (
    MAX_INPUT_TOKENS,
    BodyT,
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
    decode_embedding_request,
    input_list,
)
from quire_contract.openai.embedding_responses import RerankResponse, ScoreResponse
from quire_contract.openai.errors import invalid
from quire_worker.embedding import Embed, EmbeddingInfo
from quire_worker.server.body import read_as
from quire_worker.server.embedding_answers import (
    cosines,
    embedding_list,
    rerank_results,
    score_data,
    scores_of,
    usage_of,
)
from quire_worker.server.embedding_run import EmbeddingJob, run_job
from quire_worker.server.middleware import CALLER, SPAN
from quire_worker.server.model_routes import json_response
from quire_worker.server.resume import usage_headers
from quire_worker.server.serving import Loaded, Serving

_INLINE_CHARS = 2048
"""Shorter inputs are tokenised on the event loop: handing them to a thread costs more."""

_WHOLE_BYTES = 256 * 1024
"""Answers up to this size, and pieces of larger ones, are written at once."""

T = TypeVar("T")
Pairs = Sequence[tuple[str, str]]


class _Asking(NamedTuple):
    """One call."""

    http: web.Request
    loaded: Loaded
    arrived_s: float
    model_name: str


class Embeddings:
    """The handlers."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        arrived_s = self._serving.clock()
        with self._serving.request() as loaded:
            body = await self._body(request, EmbeddingRequest)
            model_name = loaded.model.check_name(body.model)
            info = loaded.model.check_embeds(request.path)
            if info.task == "score":
                raise invalid(
                    "model", "scores pairs of texts and makes no embeddings; use POST /v1/rerank or /v1/score"
                )
            _check_dimensions(body.dimensions, info)
            inputs = await self._inputs(loaded, body)
            job = self._job(
                _Asking(request, loaded, arrived_s, model_name),
                Embed(request_id="", inputs=inputs, dimensions=body.dimensions, normalises=body.normalize),
            )
            vectors = await self._run(job)
            is_base64 = body.encoding_format == "base64"
            answer = await embedding_list(vectors, model_name, usage_of(job.num_tokens), as_base64=is_base64)
            return await _answer(request, answer, usage_headers(request, job.num_tokens))

    async def rerank(self, request: web.Request) -> web.Response:
        arrived_s = self._serving.clock()
        with self._serving.request() as loaded:
            body = await self._body(request, RerankRequest)
            model_name = loaded.model.check_name(body.model)
            texts = body.texts
            pairs = [(body.query, text) for text in texts]
            asking = _Asking(request, loaded, arrived_s, model_name)
            scores, num_tokens = await self._scores(asking, pairs, body.truncate_prompt_tokens, "documents")
            shows = request.path != names.PATH_RERANK_COHERE if body.return_documents is None else body.return_documents
            answer = RerankResponse(
                id=f"rerank-{uuid.uuid4().hex}",
                model=model_name,
                usage=usage_of(num_tokens),
                results=rerank_results(scores, texts if shows else None, body.top_n),
            )
            return _with_usage(json_response(answer), request, num_tokens)

    async def score(self, request: web.Request) -> web.Response:
        arrived_s = self._serving.clock()
        with self._serving.request() as loaded:
            body = await self._body(request, ScoreRequest)
            model_name = loaded.model.check_name(body.model)
            asking = _Asking(request, loaded, arrived_s, model_name)
            scores, num_tokens = await self._scores(asking, body.pairs, body.truncate_prompt_tokens, "text_2")
            answer = ScoreResponse(
                id=f"score-{uuid.uuid4().hex}",
                created=int(time.time()),
                model=model_name,
                data=score_data(scores),
                usage=usage_of(num_tokens),
            )
            return _with_usage(json_response(answer), request, num_tokens)

    async def _body(self, request: web.Request, kind: type[BodyT]) -> BodyT:
        decode = functools.partial(decode_embedding_request, kind)
        return await read_as(decode, request, self._serving.limits)

    async def _inputs(self, loaded: Loaded, body: EmbeddingRequest) -> list[list[int]]:
        encoder = loaded.model.encoder
        cut = encoder.cut(body.truncate_prompt_tokens)
        adds_special = body.add_special_tokens is not False
        values = input_list(body)
        is_single = len(values) == 1

        def tokenise() -> list[list[int]]:
            return _bounded(
                (
                    encoder.one(value, cut, "input" if is_single else f"input[{i}]", add_special_tokens=adds_special)
                    for i, value in enumerate(values)
                ),
                "input",
            )

        return await self._tokenised(loaded, tokenise, sum(len(value) for value in values if isinstance(value, str)))

    async def _scores(self, asking: _Asking, pairs: Pairs, truncate: int | None, param: str) -> tuple[list[float], int]:
        """A score for each pair, and how many tokens were read for them. `param` names the field in errors."""
        loaded = asking.loaded
        info = loaded.model.check_embeds(asking.http.path)
        cut = loaded.model.encoder.cut(truncate)
        encoder, num_chars = loaded.model.encoder, sum(len(first) + len(second) for first, second in pairs)
        if info.task == "score":
            found = await self._tokenised(
                loaded,
                lambda: [encoder.pair(first, second, cut, f"{param}[{i}]") for i, (first, second) in enumerate(pairs)],
                num_chars,
            )
            inputs = _bounded((ids for ids, _ in found), param)
            starts = [start for _, start in found]
            job = self._job(asking, Embed(request_id="", inputs=inputs, second_starts=starts))
            return scores_of(await self._run(job)), job.num_tokens
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        places = {text: place for place, text in enumerate(texts)}
        inputs = await self._tokenised(
            loaded, lambda: _bounded((encoder.one(text, cut, param) for text in texts), param), num_chars
        )
        job = self._job(asking, Embed(request_id="", inputs=inputs, normalises=True))
        vectors = await self._run(job)
        firsts = [vectors[places[first]] for first, _ in pairs]
        return await cosines(firsts, [vectors[places[second]] for _, second in pairs]), job.num_tokens

    async def _tokenised(self, loaded: Loaded, work: Callable[[], list[T]], num_chars: int) -> list[T]:
        return work() if num_chars <= _INLINE_CHARS else await loaded.tokeniser.in_thread(work)

    def _job(self, asking: _Asking, embed: Embed) -> EmbeddingJob:
        """What the engine is asked, under a name of its own and in the time there is."""
        http, caller = asking.http, asking.http[CALLER]
        urgency = self._serving.urgency.decide(None, http.headers, trusted=caller.trusted)
        return EmbeddingJob(
            request_id=caller.request_id,
            route=http.path,
            arrived_s=asking.arrived_s,
            embed=msgspec.structs.replace(
                embed,
                request_id=f"{caller.request_id}-{self._serving.next_serial()}",
                timeout_s=urgency.timeout_s,
                queue_timeout_s=urgency.queue_timeout_s,
            ),
            log=self._serving.log_requests,
            model=asking.model_name,
            span=http[SPAN],
        )

    async def _run(self, job: EmbeddingJob) -> list[bytes]:
        return await run_job(job, self._serving.engine, self._serving.metrics, self._serving.clock)


def _with_usage(response: web.Response, request: web.Request, num_tokens: int) -> web.Response:
    response.headers.update(usage_headers(request, num_tokens))
    return response


async def _answer(request: web.Request, pieces: Sequence[bytes], headers: Mapping[str, str]) -> web.StreamResponse:
    """JSON in pieces; a large one goes out as fast as the client reads, and others are served meanwhile."""
    size = sum(map(len, pieces))
    if size <= _WHOLE_BYTES:
        return web.Response(body=b"".join(pieces), content_type="application/json", headers=headers)
    response = web.StreamResponse(headers={"Content-Type": "application/json", **headers})
    response.content_length = size
    await response.prepare(request)
    gathered = bytearray()
    for piece in pieces:
        gathered += piece
        if len(gathered) >= _WHOLE_BYTES:
            await response.write(bytes(gathered))
            gathered.clear()
            await asyncio.sleep(0)
    await response.write(bytes(gathered))
    await response.write_eof()
    return response


def _bounded(inputs: Iterable[list[int]], param: str) -> list[list[int]]:
    """All of them. ApiError 400 as soon as they are too many tokens together."""
    taken: list[list[int]] = []
    num_tokens = 0
    for ids in inputs:
        num_tokens += len(ids)
        if num_tokens > MAX_INPUT_TOKENS:
            raise invalid(param, f"has more than {MAX_INPUT_TOKENS} tokens in all; send several requests")
        taken.append(ids)
    return taken


def _check_dimensions(asked: int | None, info: EmbeddingInfo) -> None:
    """ApiError 400 for a size to which this model's vectors may not be cut."""
    if asked is None or asked == info.dimensions:
        return
    if not info.can_cut:
        raise invalid(
            "dimensions",
            f"this model's vectors have {info.dimensions} numbers and mean nothing when cut (its config.json has neither "
            "is_matryoshka nor matryoshka_dimensions); leave it out",
        )
    if info.cuts and asked not in info.cuts:
        raise invalid("dimensions", f"must be one of {', '.join(map(str, info.cuts))} or {info.dimensions}")
    if asked > info.dimensions:
        raise invalid("dimensions", f"must be at most {info.dimensions}")
