"""How the bodies of other APIs become the one canonical chat request, so that sampling, prompts, limits, tools and structured output are
shared.

An API's module maps its own fields to chat-shaped values; `make_chat` puts them together with the fields that mean the same everywhere.
Errors then speak of chat fields; `under_own_names` gives them back the names that the client used.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from quire_contract.openai.decode import decode_struct
from quire_contract.openai.errors import ApiError, invalid
from quire_contract.openai.limits import Limits
from quire_contract.openai.messages import ChatMessage
from quire_contract.openai.requests import ChatCompletionRequest

SHARED_FIELDS = (
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "min_tokens",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "ignore_eos",
    "skip_special_tokens",
    "structured_outputs",
    "truncate_prompt_tokens",
    "chat_template_kwargs",
    "repetition_detection",
    "cache_salt",
    "priority",
    "timeout_s",
    "queue_timeout_s",
)
"""Fields that other APIs take under the same name as chats: they act on tokens or on when they come, whatever the answer's form."""

ChatCheck = Callable[[ChatCompletionRequest, Limits], None]
"""Refuses what a converted body must not say, with a 400 in a chat's names."""
_PARTS_PER_MESSAGE = 4


def shared_fields(own: Sequence[str]) -> frozenset[str]:
    """Those that an API takes beside its `own` fields."""
    return frozenset(SHARED_FIELDS) - frozenset(own)


class OwnNames:
    """What a client of another API calls the places of a chat request."""

    def __init__(self, names: Mapping[str, str], *, tool_parameters: str) -> None:
        """`names`: path in a chat -> path in the client's body, for fields that differ; `tool_parameters`: the name of a tool's schema."""
        self._names = dict(sorted(names.items(), key=lambda item: -len(item[0])))
        self._tool_parameters = tool_parameters

    def of(self, path: str) -> str:
        """The client's path for one of a chat."""
        path = re.sub(r"^(tools\[\d+\]|tool_choice)\.function\b", r"\1", path)
        path = re.sub(r"^(tools\[\d+\])\.parameters\b", rf"\1.{self._tool_parameters}", path)
        for ours, theirs in self._names.items():
            if path == ours or path.startswith((ours + ".", ours + "[")):
                return theirs + path[len(ours) :]
        return path


def under_own_names(error: ApiError, names: OwnNames) -> ApiError:
    """The error as the client should read it: its field, and the field's name at the message's start."""
    if error.param is None or (own := names.of(error.param)) == error.param:
        return error
    message = error.message
    if message.startswith(error.param):
        message = own + message[len(error.param) :]
    return ApiError(error.status, message, type=error.type, param=own, code=error.code, headers=error.headers)


def make_chat(
    fields: Mapping[str, msgspec.Raw],
    shared: frozenset[str],
    values: Mapping[str, Any],
    messages: list[ChatMessage],
) -> ChatCompletionRequest:
    """The chat request that a body means; ranges are not checked.

    `fields`: the body, undecoded; `shared`: those that its API takes as they are; `values`: what its own mean in a chat, None for absent.
    """
    given = {name: value for name, value in values.items() if value is not None}
    given |= {name: fields[name] for name in shared & fields.keys()}
    chat = decode_struct(ChatCompletionRequest, msgspec.json.encode({**given, "messages": []}))
    return msgspec.structs.replace(chat, messages=messages)


def check_num_parts(path: str, contents: Iterable[object], limits: Limits) -> None:
    """400 for conversations cut into so many pieces that going through them would hold up everybody else."""
    most = _PARTS_PER_MESSAGE * limits.max_messages
    count = sum(len(content) for content in contents if isinstance(content, list))
    if count > most:
        raise invalid(path, f"has {count} parts in all its messages; at most {most} are allowed")
