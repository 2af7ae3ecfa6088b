"""Known request fields that would constrain or change the answer and that this server does not have: they are refused by name,
because silently ignoring a constraint gives wrong answers with status 200.

One row a field. A row goes when the feature comes. Fields that are neither here nor in `requests` are ignored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from quire_contract.openai.errors import CODE_UNSUPPORTED, invalid


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Why a field is refused, and the values that mean nothing and are let through (null always is)."""

    message: str
    is_harmless: Callable[[Any], bool] = lambda value: False


_UNREADABLE = object()


def _is_empty(value: Any) -> bool:
    return not value


def _is_text_format(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "text"


_STRUCTURED = "structured output is not supported yet"
_TOOLS = "belongs to chats; send it to /v1/chat/completions"
_BEAM = "beam search is not supported"

UNSUPPORTED: Mapping[str, Unsupported] = {
    "response_format": Unsupported('only {"type": "text"} is supported yet', _is_text_format),
    "structured_outputs": Unsupported(_STRUCTURED, _is_empty),
    "guided_json": Unsupported(_STRUCTURED),
    "guided_regex": Unsupported(_STRUCTURED, _is_empty),
    "guided_choice": Unsupported(_STRUCTURED, _is_empty),
    "guided_grammar": Unsupported(_STRUCTURED, _is_empty),
    "guided_decoding_backend": Unsupported(_STRUCTURED),
    "guided_whitespace_pattern": Unsupported(_STRUCTURED),
    "grammar": Unsupported(_STRUCTURED, _is_empty),
    "regex": Unsupported(_STRUCTURED, _is_empty),
    "ebnf": Unsupported(_STRUCTURED, _is_empty),
    "json_schema": Unsupported(_STRUCTURED),
    "tools": Unsupported(_TOOLS, _is_empty),
    "tool_choice": Unsupported(_TOOLS, lambda value: value in ("none", "auto")),
    "functions": Unsupported("is the form before tools; send tools: [{type: function, function: …}]", _is_empty),
    "function_call": Unsupported("is the form before tools; send tool_choice", lambda value: value in ("none", "auto")),
    "web_search_options": Unsupported("web search is not supported"),
    "documents": Unsupported("documents are not supported; put the text into a message", _is_empty),
    "chat_template": Unsupported("the server's chat template is used; a request cannot bring its own"),
    "audio": Unsupported("audio is not supported"),
    "modalities": Unsupported('only ["text"] is supported', lambda value: value == ["text"]),
    "prompt_embeds": Unsupported("prompt embeddings are not supported"),
    "suffix": Unsupported("insertion before a suffix is not supported", _is_empty),
    "echo": Unsupported("echo is not supported yet", _is_empty),
    "prompt_logprobs": Unsupported("log-probabilities of the prompt are not supported yet"),
    "prompt_logprob_token_ids": Unsupported("log-probabilities of the prompt are not supported yet", _is_empty),
    "logprob_token_ids": Unsupported("log-probabilities of chosen tokens are not supported yet", _is_empty),
    "return_tokens_as_token_ids": Unsupported("is not supported yet", _is_empty),
    "return_token_ids": Unsupported("is not supported yet", _is_empty),
    "allowed_token_ids": Unsupported("is not supported yet"),
    "bad_words": Unsupported("is not supported yet; logit_bias of -100 forbids a token", _is_empty),
    "truncate_prompt_tokens": Unsupported("is not supported; shorten the prompt"),
    "logits_processors": Unsupported("is not supported", _is_empty),
    "logit_processors": Unsupported("is not supported", _is_empty),
    "use_beam_search": Unsupported(_BEAM, _is_empty),
    "beam_width": Unsupported(_BEAM, lambda value: value in (0, 1)),
    "length_penalty": Unsupported(_BEAM, lambda value: value == 1),
    "thinking_token_budget": Unsupported("is not supported yet"),
    "repetition_detection": Unsupported("is not supported yet"),
    "kv_transfer_params": Unsupported("is not supported yet"),
    "priority": Unsupported("scheduling by priority is not supported yet", lambda value: value == 0),
}


def refuse_unsupported(fields: Mapping[str, msgspec.Raw], taken: frozenset[str] = frozenset()) -> None:
    """400 for the first field of a body (undecoded values) that the table has, unless the request type takes it itself."""
    for name, raw in fields.items():
        row = UNSUPPORTED.get(name)
        if row is None or name in taken:
            continue
        value = _value(raw)
        if value is not None and not row.is_harmless(value):
            raise invalid(name, row.message, CODE_UNSUPPORTED)


def _value(raw: msgspec.Raw) -> Any:
    """The JSON value; for what only the full decoder finds fault with (a number like 1e999), something that is not harmless."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return _UNREADABLE
