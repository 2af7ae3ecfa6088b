"""What routers read of bodies: enough to find their prompt's blocks, and nothing that is the worker's to judge."""

import json
from typing import Any

import pytest

from quire_contract import names
from quire_contract.openai.errors import ApiError
from quire_contract.routing import routing_fields

TALK = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    names.PATH_CHAT: {"model": "m", "messages": TALK},
    names.PATH_RESPONSES: {"model": "m", "input": TALK},
    names.PATH_MESSAGES: {"model": "m", "messages": TALK, "max_tokens": 5},
}
FLAGS = {"chat_template_kwargs": {"own": 1}, "logit_bias": {"5": 1000}, "top_k": -7, "timeout_s": -1}
"""More than workers take without flags, or at all."""


@pytest.mark.parametrize("path", BODIES)
def test_what_depends_on_a_workers_flags_is_left_to_the_worker(path: str) -> None:
    more = {"top_logprobs": 50} if path != names.PATH_MESSAGES else {}

    fields = routing_fields(path, json.dumps(BODIES[path] | FLAGS | more).encode())

    assert fields.chat_template_kwargs == {"own": 1}
    assert fields.messages is not None


@pytest.mark.parametrize("path", BODIES)
def test_what_the_prompt_needs_is_refused_in_the_bodys_own_names(path: str) -> None:
    field = "input" if path == names.PATH_RESPONSES else "messages"
    with pytest.raises(ApiError) as empty:
        routing_fields(path, json.dumps(BODIES[path] | {field: []}).encode())
    with pytest.raises(ApiError) as long:
        routing_fields(path, json.dumps(BODIES[path] | {"cache_salt": "x" * 10_000}).encode())

    assert (empty.value.status, empty.value.param) == (400, field)
    assert (long.value.status, long.value.param) == (400, "cache_salt")
