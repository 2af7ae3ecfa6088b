"""What a router reads of a body before it chooses a worker, whichever API the body is of: `contract.prompt` must render it as the worker
will, or its blocks could not be found again.

Chats and completions are read in part; the bodies of other APIs are converted whole, as only the conversion says what their prompt is. Of
none is more checked than the prompt needs: what else a worker takes depends on its flags.
"""

import msgspec

from quire_contract import names
from quire_contract.anthropic.chat import decode_messages
from quire_contract.openai.decode import DEFAULT_LIMITS, decode_routing_fields
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import ChatCompletionRequest, RoutingFields
from quire_contract.openai.responses_chat import decode_responses
from quire_contract.openai.validation import check_routing

PATHS_WITH_PROMPT = frozenset({names.PATH_CHAT, names.PATH_COMPLETIONS, names.PATH_RESPONSES, names.PATH_MESSAGES})
"""Calls that are routed by what their prompt has in common with earlier ones."""
PATHS_BY_MODEL = frozenset(
    {
        names.PATH_TOKENIZE,
        names.PATH_DETOKENIZE,
        names.PATH_COUNT_TOKENS,
        names.PATH_EMBEDDINGS,
        names.PATH_RERANK,
        names.PATH_RERANK_PLAIN,
        names.PATH_RERANK_COHERE,
        names.PATH_SCORE,
        names.PATH_SCORE_PLAIN,
    }
)
"""Calls for which any worker of the model is as good: nothing that they compute is kept."""


def routing_fields(path: str, body: bytes, limits: Limits = DEFAULT_LIMITS) -> RoutingFields:
    """What the body of a call to one of PATHS_WITH_PROMPT says. ApiError 400 (413 over the limit) in the body's own names."""
    if path == names.PATH_RESPONSES:
        return _of_chat(decode_responses(body, limits, _check_prompt)[1])
    if path == names.PATH_MESSAGES:
        return _of_chat(decode_messages(body, limits, _check_prompt)[1])
    return decode_routing_fields(body, limits)


def _check_prompt(chat: ChatCompletionRequest, limits: Limits) -> None:
    check_routing(_of_chat(chat), limits)


def _of_chat(chat: ChatCompletionRequest) -> RoutingFields:
    """A chat's fields of the same names, so that none which decides the prompt can be forgotten here."""
    values = msgspec.structs.asdict(chat)
    return RoutingFields(**{name: values[name] for name in RoutingFields.__struct_fields__ if name in values})
