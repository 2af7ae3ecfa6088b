"""What no worker would accept is not held for one: a request that is wrong whatever the model must not wake a service that sleeps.

Checks what the worker's own first look does, with the limits that a worker's flags can raise left open. Knows no workers.
"""

import asyncio

from quire_contract import names
from quire_contract.openai.decode import decode_request
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import ChatCompletionRequest, CompletionRequest
from quire_router.call import Call

_LIMITS = Limits(max_body_bytes=2**40, max_logprobs=2**31)
"""The router has its own limit of bodies."""
_SMALL_BYTES = 65_536
"""What is larger is looked at in a thread."""


async def check_body(call: Call) -> None:
    """ApiError as a worker would answer it, for chats and completions; other calls are the worker's to look at."""
    if call.path not in (names.PATH_CHAT, names.PATH_COMPLETIONS):
        return
    if len(call.body) <= _SMALL_BYTES:
        _check(call)
    else:
        await asyncio.to_thread(_check, call)


def _check(call: Call) -> None:
    if call.path == names.PATH_CHAT:
        decode_request(ChatCompletionRequest, call.body, _LIMITS)
    else:
        decode_request(CompletionRequest, call.body, _LIMITS)
