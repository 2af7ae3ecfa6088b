"""Bodies of the routes that compare or place texts instead of writing them: embeddings (OpenAI's), rerank (Cohere's, Jina's and vLLM's)
and score (vLLM's); and how they are read from bytes.

Every field may be null, which means absent. `check_*` raise a 400 that names the field. What depends on the model is the worker's.
"""

from typing import TypeVar, cast

import msgspec

from quire_contract.openai.decode import DEFAULT_LIMITS, decode_fields, decode_struct
from quire_contract.openai.errors import invalid
from quire_contract.openai.limits import Limits
from quire_contract.openai.unsupported import refuse_unsupported

ENCODING_FORMATS = ("float", "base64")
MAX_INPUTS = 2048
"""Inputs of one request, as OpenAI has it; documents and pairs likewise."""
MAX_INPUT_TOKENS = 300_000
"""Tokens of one request's inputs together, as OpenAI has it."""


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/embeddings."""

    model: str
    input: str | list[str | int | list[int]]
    """A text, several, token ids, or several lists of those."""
    encoding_format: str | None = None
    """float (the default) or base64: little-endian float32."""
    dimensions: int | None = None
    """Cut vectors to so many numbers, of models made for it."""
    truncate_prompt_tokens: int | None = None
    """Keep so many tokens of a longer input, special ones included; -1: as many as the model takes. None: too long is a 400."""
    add_special_tokens: bool | None = None
    normalize: bool | None = None
    """Scale vectors to length 1; None: as the model's authors do."""
    user: str | None = None


class TextDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A document that is an object."""

    text: str


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/rerank, /v2/rerank and /rerank."""

    query: str
    documents: list[str | TextDocument]
    model: str | None = None
    top_n: int | None = None
    """Results at most; 0 or None: one for each document."""
    return_documents: bool | None = None
    """Put texts into the results. None: yes, but at /v2/rerank, where Cohere's clients do not expect them."""
    truncate_prompt_tokens: int | None = None
    user: str | None = None

    @property
    def texts(self) -> list[str]:
        """Of the documents."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/score and /score: one text against one, one against many, or many against as many."""

    text_1: str | list[str]
    text_2: str | list[str]
    model: str | None = None
    truncate_prompt_tokens: int | None = None
    user: str | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """In the order of the scores."""
        firsts, seconds = _texts(self.text_1), _texts(self.text_2)
        if len(firsts) == 1:
            firsts = firsts * len(seconds)
        return list(zip(firsts, seconds, strict=True))


BodyT = TypeVar("BodyT", EmbeddingRequest, RerankRequest, ScoreRequest)


def decode_embedding_request(kind: type[BodyT], body: bytes, limits: Limits = DEFAULT_LIMITS) -> BodyT:
    """The checked request of type `kind` in `body`. ApiError 400 (413 for a body over the limit) otherwise."""
    fields = decode_fields(body, limits)
    refuse_unsupported(fields, frozenset(kind.__struct_fields__))
    request = decode_struct(kind, body)
    match request:
        case EmbeddingRequest():
            _check_embedding(request)
        case RerankRequest():
            _check_rerank(request)
        case ScoreRequest():
            _check_score(request)
    return request


def input_list(request: EmbeddingRequest) -> list[str | list[int]]:
    """The inputs of a checked body: a string or a list of token ids is one."""
    value = request.input
    if isinstance(value, str):
        return [value]
    if isinstance(value[0], int):
        return [cast("list[int]", value)]
    return [item for item in value if not isinstance(item, int)]


def _check_embedding(request: EmbeddingRequest) -> None:
    if request.encoding_format not in (None, *ENCODING_FORMATS):
        raise invalid("encoding_format", f"must be one of {', '.join(ENCODING_FORMATS)}")
    if request.dimensions is not None and request.dimensions < 1:
        raise invalid("dimensions", "must be at least 1")
    _check_truncation(request.truncate_prompt_tokens)
    if not isinstance(request.input, str):
        _check_input_list(request.input)


def _check_input_list(values: list[str | int | list[int]]) -> None:
    if not values:
        raise invalid("input", "must not be an empty list")
    kind = type(values[0])
    if set(map(type, values)) != {kind}:
        index = next(i for i, item in enumerate(values) if type(item) is not kind)
        raise invalid(f"input[{index}]", "is of another kind than input[0]; strings, token ids and lists do not mix")
    if kind is int:
        return
    _check_count("input", len(values))
    if [] in values:
        raise invalid(f"input[{values.index([])}]", "must hold at least one token id")


def _check_rerank(request: RerankRequest) -> None:
    if not request.documents:
        raise invalid("documents", "must hold at least one document")
    _check_count("documents", len(request.documents))
    if request.top_n is not None and request.top_n < 0:
        raise invalid("top_n", "must be at least 1, or 0 for all documents")
    _check_truncation(request.truncate_prompt_tokens)


def _check_score(request: ScoreRequest) -> None:
    firsts, seconds = _texts(request.text_1), _texts(request.text_2)
    for name, texts in (("text_1", firsts), ("text_2", seconds)):
        if not texts:
            raise invalid(name, "must not be an empty list")
        _check_count(name, len(texts))
    if len(firsts) not in (1, len(seconds)):
        raise invalid(
            "text_2", f"has {len(seconds)} texts and text_1 {len(firsts)}; send one text_1 or as many as text_2"
        )
    _check_truncation(request.truncate_prompt_tokens)


def _check_truncation(value: int | None) -> None:
    if value is not None and value != -1 and value < 1:
        raise invalid("truncate_prompt_tokens", "must be at least 1, or -1 for the model's longest input")


def _check_count(name: str, count: int) -> None:
    if count > MAX_INPUTS:
        raise invalid(name, f"has {count} entries; at most {MAX_INPUTS} are allowed")


def _texts(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
