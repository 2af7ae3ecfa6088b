"""Every route of the worker, with the types of what goes in and comes out: `app` serves this table and `openapi` shows it, so that no route
can be served without its description.

A new API adds its rows here, its types to the contract, and its handlers, under the rows' names, to `worker`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quire_contract import names
from quire_contract.anthropic.objects import Message, MessagesEvent, MessageTokensCount
from quire_contract.anthropic.requests import CountTokensRequest, MessagesRequest
from quire_contract.openai.embedding_requests import EmbeddingRequest, RerankRequest, ScoreRequest
from quire_contract.openai.embedding_responses import EmbeddingList, RerankResponse, ScoreResponse
from quire_contract.openai.requests import ChatCompletionRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from quire_contract.openai.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    DetokenizeResponse,
    ModelCard,
    ModelList,
    StreamError,
    TokenizeResponse,
)
from quire_contract.openai.responses_objects import ResponseObject, ResponsesEvent
from quire_contract.openai.responses_requests import ResponsesRequest
from quire_contract.resume import PATH_RESUME, ResumeEnvelope
from quire_contract.startup_report import SleepAnswer, StartupReport
from quire_worker.server.access import OPEN_PATHS
from quire_worker.server.probe_answers import (
    BundleAnswer,
    DrainAnswer,
    EventSourcesAnswer,
    HealthAnswer,
    LoadAnswer,
    ReadyAnswer,
    VersionAnswer,
)

JSON = "application/json"
_READ = (400, 408, 413)
_AWAY = (503,)
_GENERATES = (*_READ, 404, 429, 500, 503, 504)


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    """As aiohttp's patterns are."""
    name: str
    """Of the operation, and of its handler."""
    summary: str
    body: type | None = None
    """What is sent as JSON; None: nothing."""
    answer: Any = None
    """What comes back as JSON; None: something else, of type `media`."""
    media: str = JSON
    events: Sequence[Any] = ()
    """What the data of a stream's events may be, for a body with `stream: true`; empty: no streams."""
    errors: Sequence[int] = ()
    """Statuses besides 401 that an error may have."""

    @property
    def is_open(self) -> bool:
        """Nobody is asked for a key."""
        return self.path in OPEN_PATHS


def _embedding_routes() -> tuple[Route, ...]:
    """What embedding and scoring models do, under the paths that others have for it."""
    rerank = "Documents by how well they fit a query."
    score = "How well texts fit one another."
    made: list[tuple[str, str, str, type, type]] = [
        (names.PATH_EMBEDDINGS, "embeddings", "OpenAI's Embeddings.", EmbeddingRequest, EmbeddingList),
        (names.PATH_RERANK, "rerank", rerank, RerankRequest, RerankResponse),
        (names.PATH_RERANK_PLAIN, "rerank_plain", rerank, RerankRequest, RerankResponse),
        (names.PATH_RERANK_COHERE, "rerank_cohere", rerank, RerankRequest, RerankResponse),
        (names.PATH_SCORE, "score", score, ScoreRequest, ScoreResponse),
        (names.PATH_SCORE_PLAIN, "score_plain", score, ScoreRequest, ScoreResponse),
    ]
    return tuple(
        Route(method="POST", path=path, name=name, summary=summary, body=body, answer=answer, errors=_GENERATES)
        for path, name, summary, body, answer in made
    )


ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path=names.PATH_CHAT,
        name="chat",
        summary="OpenAI's Chat Completions. A stream ends with `data: [DONE]`.",
        body=ChatCompletionRequest,
        answer=ChatCompletion,
        events=(ChatCompletionChunk, StreamError),
        errors=_GENERATES,
    ),
    Route(
        method="POST",
        path=names.PATH_COMPLETIONS,
        name="completion",
        summary="OpenAI's Completions. A stream ends with `data: [DONE]`.",
        body=CompletionRequest,
        answer=Completion,
        events=(Completion, StreamError),
        errors=_GENERATES,
    ),
    Route(
        method="POST",
        path=names.PATH_RESPONSES,
        name="response",
        summary="OpenAI's Responses, without storage.",
        body=ResponsesRequest,
        answer=ResponseObject,
        events=(ResponsesEvent,),
        errors=_GENERATES,
    ),
    Route(
        method="POST",
        path=names.PATH_MESSAGES,
        name="message",
        summary="Anthropic's Messages.",
        body=MessagesRequest,
        answer=Message,
        events=(MessagesEvent,),
        errors=_GENERATES,
    ),
    Route(
        method="POST",
        path=names.PATH_COUNT_TOKENS,
        name="count_tokens",
        summary="How many tokens the prompt of a message has.",
        body=CountTokensRequest,
        answer=MessageTokensCount,
        errors=(*_READ, 404, 429, 503),
    ),
    *_embedding_routes(),
    Route(
        method="GET",
        path=names.PATH_MODELS,
        name="models",
        summary="The served names.",
        answer=ModelList,
        errors=_AWAY,
    ),
    Route(
        method="GET",
        path=names.PATH_MODELS + "/{name:.+}",
        name="model",
        summary="One served name.",
        answer=ModelCard,
        errors=(404, 503),
    ),
    Route(
        method="POST",
        path=names.PATH_TOKENIZE,
        name="tokenize",
        summary="The tokens of a text or a chat.",
        body=TokenizeRequest,
        answer=TokenizeResponse,
        errors=(*_READ, 404, 429, 503),
    ),
    Route(
        method="POST",
        path=names.PATH_DETOKENIZE,
        name="detokenize",
        summary="The text of tokens.",
        body=DetokenizeRequest,
        answer=DetokenizeResponse,
        errors=(*_READ, 404, 429, 503),
    ),
    Route(
        method="GET",
        path=names.PATH_HEALTH,
        name="health",
        summary="Whether the process lives: 200 also while it loads and drains.",
        answer=HealthAnswer,
        errors=_AWAY,
    ),
    Route(
        method="GET",
        path=names.PATH_READY,
        name="ready",
        summary="Whether requests are taken.",
        answer=ReadyAnswer,
        errors=_AWAY,
    ),
    Route(
        method="GET",
        path=names.PATH_METRICS,
        name="metrics",
        summary="Metrics in Prometheus's text format.",
        media="text/plain",
    ),
    Route(method="GET", path="/version", name="version", summary="The release.", answer=VersionAnswer),
    Route(method="GET", path="/load", name="load", summary="Requests inside the process.", answer=LoadAnswer),
    Route(
        method="GET",
        path=names.PATH_OPENAPI,
        name="openapi",
        summary="This document.",
        answer=dict[str, Any],
    ),
    Route(
        method="GET",
        path=names.PATH_KV_EVENT_SOURCES,
        name="kv_event_sources",
        summary="Where KV events are published.",
        answer=EventSourcesAnswer,
        errors=_AWAY,
    ),
    Route(
        method="GET",
        path=names.PATH_PROMPT_BUNDLE,
        name="bundle",
        summary="The prompt bundle's name, for routers.",
        answer=BundleAnswer,
        errors=_AWAY,
    ),
    Route(
        method="GET",
        path=names.PATH_PROMPT_BUNDLE + "/{digest}",
        name="bundle_bytes",
        summary="The prompt bundle of that name.",
        media="application/octet-stream",
        errors=(404, 503),
    ),
    Route(
        method="POST",
        path=PATH_RESUME,
        name="resume",
        summary="A stream of another worker goes on here, for routers.",
        body=ResumeEnvelope,
        media="text/event-stream",
        errors=(*_GENERATES, 409),
    ),
    Route(
        method="POST",
        path=names.PATH_DRAIN,
        name="drain",
        summary="Take no new requests.",
        answer=DrainAnswer,
        errors=(403,),
    ),
    Route(
        method="DELETE",
        path=names.PATH_DRAIN,
        name="undrain",
        summary="Take requests again.",
        answer=DrainAnswer,
        errors=(403, 409),
    ),
    Route(
        method="GET",
        path=names.PATH_STARTUP,
        name="startup",
        summary="How long each part of the start took.",
        answer=StartupReport,
    ),
    Route(
        method="POST",
        path=names.PATH_SLEEP,
        name="sleep",
        summary="Give memory back and take no request until woken; ?wait=SECONDS lets running ones end.",
        answer=SleepAnswer,
        errors=(400, 403, 409, 503),
    ),
    Route(
        method="POST",
        path=names.PATH_WAKE,
        name="wake",
        summary="Take requests again.",
        answer=SleepAnswer,
        errors=(403, 503),
    ),
)
