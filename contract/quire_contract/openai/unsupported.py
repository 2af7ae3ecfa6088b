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


def _moved(name: str, is_harmless: Callable[[Any], bool] = _is_empty) -> Unsupported:
    """A field that other servers have, or had once."""
    return Unsupported(f'is not read; send {{"structured_outputs": {{"{name}": ...}}}}', is_harmless)


def _moved_schema() -> Unsupported:
    """An empty schema constrains too: to JSON."""
    return _moved("json", lambda value: False)


_TOOLS = "belongs to chats; send it to /v1/chat/completions"
_BEAM = "beam search is not supported"

UNSUPPORTED: Mapping[str, Unsupported] = {
    "guided_json": _moved_schema(),
    "guided_regex": _moved("regex"),
    "guided_choice": _moved("choice"),
    "guided_grammar": _moved("grammar"),
    "guided_decoding_backend": Unsupported("there is one backend; leave this out and send structured_outputs"),
    "guided_whitespace_pattern": _moved("whitespace_pattern"),
    "grammar": _moved("grammar"),
    "regex": _moved("regex"),
    "choice": _moved("choice"),
    "ebnf": Unsupported("send a Lark grammar as structured_outputs.grammar", _is_empty),
    "json_schema": _moved_schema(),
    "structural_tag": Unsupported("is not supported; send structured_outputs.grammar"),
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
    "echo": Unsupported("only completions can echo; use continue_final_message to go on with a message", _is_empty),
    "prompt_logprob_token_ids": Unsupported("is not supported; prompt_logprobs gives the likeliest tokens", _is_empty),
    "prompt_logprob_start": Unsupported("is not supported; prompt_logprobs begins with the prompt", _is_empty),
    "truncation_side": Unsupported(
        'only "left" is supported, which keeps the last tokens', lambda value: value == "left"
    ),
    "spaces_between_special_tokens": Unsupported("only true is supported", lambda value: value is True),
    "detokenize": Unsupported(
        "only true is supported; return_token_ids gives the ids too", lambda value: value is True
    ),
    "flat_logprobs": Unsupported("is not supported", _is_empty),
    "watermarking": Unsupported("is not supported", _is_empty),
    "trace_decode_token_ids": Unsupported("is not supported", _is_empty),
    "vllm_xargs": Unsupported("is not supported", _is_empty),
    "extra_args": Unsupported("is not supported", _is_empty),
    "logits_processors": Unsupported("is not supported", _is_empty),
    "logit_processors": Unsupported("is not supported", _is_empty),
    "use_beam_search": Unsupported(_BEAM, _is_empty),
    "beam_width": Unsupported(_BEAM, lambda value: value in (0, 1)),
    "length_penalty": Unsupported(_BEAM, lambda value: value == 1),
    "thinking_token_budget": Unsupported("is not supported yet"),
    "kv_transfer_params": Unsupported("is not supported yet"),
}


def refuse_unsupported(fields: Mapping[str, msgspec.Raw], taken: frozenset[str] = frozenset()) -> None:
    """400 for the first field of a body (undecoded values) that the table has, unless the request type takes it itself."""
    refuse_named(fields, UNSUPPORTED, taken)


def refuse_named(
    fields: Mapping[str, msgspec.Raw], table: Mapping[str, Unsupported], taken: frozenset[str] = frozenset()
) -> None:
    """The same by another table: that of an API which lacks what others have."""
    for name, raw in fields.items():
        row = table.get(name)
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
