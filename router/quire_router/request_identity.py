"""Which requests have one answer only, and the key under which that answer is known. Pure functions.

Two requests with one key get the same answer from the same model; two that could get different ones never have one key. So the key covers
all that a worker may read, except what is listed in NOT_ANSWERED; where the order of a JSON object's fields may reach the prompt (tools,
schemas, template arguments), it is kept: only the fields of the body itself and of its messages are sorted.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from quire_contract import names
from quire_contract.routing import PATHS_WITH_PROMPT
from quire_contract.trust import presented_key
from quire_router.call import Call

MAX_KEYED_BODY_BYTES = 512 * 1024
"""A longer body is not looked at: sorting and hashing it would hold up the event loop."""
MAX_SORTED_ITEMS = 2048
"""Messages of a request that has a key."""
PATHS_OF_VECTORS = frozenset(
    {
        names.PATH_EMBEDDINGS,
        names.PATH_RERANK,
        names.PATH_RERANK_PLAIN,
        names.PATH_RERANK_COHERE,
        names.PATH_SCORE,
        names.PATH_SCORE_PLAIN,
    }
)
"""Nothing is drawn there: every request has one answer. /tokenize and its like cost less than a look-up would."""
_WHO_ASKS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
NOT_ANSWERED = {
    names.PATH_CHAT: _WHO_ASKS,
    names.PATH_COMPLETIONS: _WHO_ASKS,
    names.PATH_MESSAGES: frozenset({"metadata"}),
    names.PATH_RESPONSES: frozenset[str](),  # its answers repeat all of them
    **dict.fromkeys(PATHS_OF_VECTORS, frozenset({"user"})),
}
"""Path -> fields of a body that its answer does not depend on."""
_EFFECTS = (
    "store",
    "background",
    "previous_response_id",
    "conversation",
    "prompt_id",
    "web_search_options",
    "mcp_servers",
    "container",
    "context_management",
)
"""Fields by which a request leaves something behind, or by which its answer depends on more than itself."""
_OWN_TOOLS = (None, "function", "custom")
"""Types of tools that the client runs. Others are run by a server, and give what they find at that moment."""
_OUTSIDE = (b'"image_url"', b'"file_id"', b'"file_url"', b'"input_audio"', b'"video_url"')
"""What is at an address may change."""
_HEADERS = ("anthropic-version", "anthropic-beta", "openai-beta")
"""Which go to workers and may change the answer's form."""


class _Sampling(msgspec.Struct, frozen=True):
    temperature: Any = None
    seed: Any = None


_SAMPLING = msgspec.json.Decoder(_Sampling)
_FIELDS = msgspec.json.Decoder(dict[str, Any])


def answer_key(call: Call) -> bytes | None:
    """32 bytes. None: the request may have several answers or leaves something behind, so nothing about it may be kept or shared."""
    if call.path not in NOT_ANSWERED or len(call.body) > MAX_KEYED_BODY_BYTES:
        return None
    try:
        if call.path in PATHS_WITH_PROMPT and not _draws_nothing_new(_SAMPLING.decode(call.body)):
            return None
        fields = _FIELDS.decode(call.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # what is wrong with it is the worker's to say
    if any(fields.get(name) for name in _EFFECTS) or not _has_only_own_tools(fields.get("tools")):
        return None
    if any(mark in call.body for mark in _OUTSIDE):
        return None
    canonical = _canonical(fields, NOT_ANSWERED[call.path])
    if canonical is None:
        return None
    words = [call.path, call.targets[0], *(call.headers.get(name, "") for name in _HEADERS)]
    return _digest([scope_of(call), canonical, *(word.encode("utf-8", "surrogateescape") for word in words)])


def scope_of(call: Call) -> bytes:
    """Who may be given each other's answers: the requests of a tenant; without tenants, those with one key."""
    if call.tenant is not None:
        return b"tenant " + call.tenant.entry.id.encode()
    key = presented_key(call.headers)
    return b"" if key is None else b"key " + hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _draws_nothing_new(sampling: _Sampling) -> bool:
    """Greedy, or drawn with a seed that the client gave."""
    temperature, seed = sampling.temperature, sampling.seed
    is_greedy = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
    return is_greedy or (isinstance(seed, int) and not isinstance(seed, bool))


def _has_only_own_tools(tools: Any) -> bool:
    if not isinstance(tools, list):
        return tools is None
    return all(isinstance(tool, dict) and tool.get("type") in _OWN_TOOLS for tool in tools)


def _canonical(fields: dict[str, Any], ignored: frozenset[str]) -> bytes | None:
    """The body in one form: null is absent, the model is told apart, its fields and those of its messages are in order."""
    kept = {name: value for name, value in fields.items() if value is not None and name not in ignored}
    kept.pop("model", None)
    kept["stream"] = kept.get("stream") is True
    if not kept["stream"]:
        kept.pop("stream_options", None)
    for name in ("messages", "input"):
        items = kept.get(name)
        if isinstance(items, list) and any(isinstance(item, dict) for item in items):
            if len(items) > MAX_SORTED_ITEMS:
                return None
            kept[name] = [dict(sorted(item.items())) if isinstance(item, dict) else item for item in items]
    return msgspec.json.encode(dict(sorted(kept.items())))


def _digest(parts: Iterable[bytes]) -> bytes:
    """Of the parts, each with its length before it: no two lists of parts are alike."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()
