"""Requests with one key have one answer; those that could get different ones never share a key."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from quire_contract.router_tenants import TenantEntry
from quire_router.call import Call, Tenant
from quire_router.request_identity import MAX_KEYED_BODY_BYTES, answer_key

CHAT = "/v1/chat/completions"
GREEDY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


def call_of(body, path=CHAT, headers=None, tenant=None, target="m"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    entry = None if tenant is None else Tenant(entry=TenantEntry(id=tenant), key_id="k")
    return Call(
        request_id="r",
        model="m",
        targets=(target,),
        path=path,
        body=data,
        is_stream=False,
        first_byte_timeout_s=None,
        prompt=None,
        keep_key=False,
        headers=CIMultiDict(headers or {}),
        tenant=entry,
    )


def key_of(body, **others):
    return answer_key(call_of(body, **others))


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=8)}, optional={"name": values}
)
bodies = st.fixed_dictionaries(
    {"messages": st.lists(message, min_size=1, max_size=3), "temperature": st.just(0)},
    optional={
        "stream": st.booleans(),
        "seed": st.integers(0, 9),
        "max_tokens": st.integers(1, 9),
        "response_format": values,
        "stop": st.text(max_size=3),
        "chat_template_kwargs": st.dictionaries(st.text(max_size=3), values, max_size=3),
    },
)


def decoded(body):
    return msgspec.json.decode(json.dumps(body).encode())


def meaning(body):
    """What a worker may tell apart of a chat: nested objects with the order of their fields, the outermost ones without it."""
    kept = {name: value for name, value in decoded(body).items() if value is not None and name != "stream"}
    kept["messages"] = [tuple(sorted((k, msgspec.json.encode(v)) for k, v in m.items())) for m in kept["messages"]]
    return body.get("stream", False), sorted(
        (name, value if name == "messages" else msgspec.json.encode(value)) for name, value in kept.items()
    )


@given(body=bodies, data=st.data())
def test_the_order_of_a_bodys_and_a_messages_fields_does_not_matter(body, data):
    order = data.draw(st.permutations(list(body)))
    turned = {name: body[name] for name in order}
    turned["messages"] = [dict(reversed(list(m.items()))) for m in body["messages"]]
    spaced = json.dumps(turned, indent=2, ensure_ascii=data.draw(st.booleans())).encode("utf-8", "surrogatepass")

    assert key_of(body) is not None
    assert key_of(spaced) == key_of(body)


@given(first=bodies, second=bodies)
def test_bodies_that_a_worker_can_tell_apart_never_have_one_key(first, second):
    assert (key_of(first) == key_of(second)) == (meaning(first) == meaning(second))


@given(tools=st.permutations(["a", "b", "c"]))
def test_an_order_that_may_reach_the_prompt_is_kept(tools):
    def body(order):
        schema = {"type": "object", "properties": {name: {"type": "string"} for name in order}}
        return {**GREEDY, "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}

    same = list(tools) == ["a", "b", "c"]

    assert (key_of(body(tools)) == key_of(body("abc"))) == same


@pytest.mark.parametrize(
    "more",
    [
        {"user": "u"},
        {"metadata": {"a": "b"}},
        {"safety_identifier": "s"},
        {"prompt_cache_key": "p"},
        {"stream": False},
        {"stream": None},
        {"stream_options": {"include_usage": True}},
        {"seed": None},
        {"store": False},
    ],
)
def test_fields_that_no_answer_depends_on_are_left_out(more):
    usual = key_of(GREEDY) if "store" not in more else key_of({**GREEDY, "store": False})

    assert key_of({**GREEDY, **more}) == usual


def test_a_response_repeats_who_asks_so_they_have_keys_of_their_own():
    body = {"model": "m", "input": "hi", "temperature": 0}

    keys = {key_of({**body, **more}, path="/v1/responses") for more in ({}, {"user": "u"}, {"metadata": {"a": "b"}})}

    assert len(keys) == 3
    assert None not in keys


def test_whoever_else_asks_elsewhere_or_of_another_model_has_another_key():
    keys = [
        key_of(GREEDY),
        key_of(GREEDY, tenant="a"),
        key_of(GREEDY, tenant="b"),
        key_of(GREEDY, headers={"Authorization": "Bearer one"}),
        key_of(GREEDY, headers={"x-api-key": "two"}),
        key_of(GREEDY, target="other"),
        key_of(GREEDY, path="/v1/completions"),
        key_of(GREEDY, headers={"anthropic-beta": "x"}),
        key_of({**GREEDY, "stream": True}),
        key_of({**GREEDY, "cache_salt": "s"}),
    ]

    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_two_keys_of_one_tenant_have_one_key():
    one = key_of(GREEDY, tenant="a", headers={"Authorization": "Bearer one"})

    assert one == key_of(GREEDY, tenant="a", headers={"Authorization": "Bearer two"})


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.1},
        {"temperature": None},
        {"temperature": False},
        {"temperature": "0"},
        {"store": True},
        {"background": True},
        {"previous_response_id": "resp_1"},
        {"conversation": {"id": "c"}},
        {"web_search_options": {"a": 1}},
        {"tools": [{"type": "web_search"}]},
        {"tools": "x"},
        {"mcp_servers": [{"url": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]},
        {"messages": [{}] * 5000},
        {"x": "a" * MAX_KEYED_BODY_BYTES},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_may_have_several_answers_or_leaves_something_behind_has_no_key(more):
    assert key_of({**GREEDY, **more}) is None


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"temperature":0,"x":"\xff"}', b'{"temperature":0,"x":' + b"[" * 5000]
)
def test_what_is_no_body_has_no_key(body):
    assert key_of(body) is None


def test_a_seed_makes_an_answer_known_at_any_temperature():
    seeded = {**GREEDY, "temperature": 1, "seed": 7}

    assert key_of(seeded) is not None
    assert key_of(seeded) != key_of({**seeded, "seed": 8})


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/rerank", "/v2/rerank", "/v1/score", "/score"])
def test_vectors_are_always_known(path):
    body = {"model": "m", "input": ["a", "b"]}

    assert (
        key_of(body, path=path)
        == key_of({**body, "user": "u"}, path=path)
        != key_of({**body, "input": ["b", "a"]}, path=path)
    )


def test_what_costs_less_than_a_look_up_has_no_key():
    assert key_of({"model": "m", "prompt": "x", "temperature": 0}, path="/tokenize") is None
