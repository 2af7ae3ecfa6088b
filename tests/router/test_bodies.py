"""A usual chat is read in C++ as it would be without: the same fields, or it is left to `routing_fields`."""

import json
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_contract import names
from quire_contract.openai.errors import ApiError
from quire_contract.openai.limits import Limits
from quire_contract.openai.messages import ChatMessage
from quire_contract.openai.requests import RoutingFields
from quire_contract.routing import routing_fields
from quire_router.bodies import USUAL_BYTES, BodyReader, usual_chats
from quire_router.native.library import native

LIMITS = Limits(max_messages=5, max_cache_salt_chars=6)
USUAL = usual_chats(LIMITS, native())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])
MESSAGES = st.fixed_dictionaries(
    {"role": ROLES | st.text(max_size=3), "content": st.text(max_size=20) | VALUES},
    optional={name: st.none() | VALUES for name in ("refusal", *ChatMessage.__struct_fields__[2:])},
)
FIELDS = st.dictionaries(st.sampled_from(RoutingFields.__struct_fields__) | st.text(max_size=5), VALUES, max_size=4)
BODIES = st.builds(
    lambda fields, others: {**others, **fields},
    st.fixed_dictionaries({"model": st.text(max_size=5), "messages": st.lists(MESSAGES, min_size=1, max_size=6)}),
    FIELDS,
)
PLAIN = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
PIECES = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b" ", b"\n", b"\t", b"\0", b"\x01", b"\x7f", b"0", b"-", b"1.0",
    b"e5", b"01", b"1E400", b"\xc3", b"null", b"true", b"nul", b"NaN", b'"model"', b'"messages"', b'"stream":true,',
    b'"n":1,', b'"x":[{"y":-0.5e-3}],', b'"max_tokens":7,', b"\\u", b"\\u00e9", b"\\ud83d\\ude00", b"\\ud800",
    b"\\udc00", b"\\u12G4", b"\\/", b"\\x", b"\xc3\xa9", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"role":"user",',
    b'"content":null,', b'"name":null,', b'"cache_salt":"s\xc3\xa9",', b'"tools":null,',
]  # fmt: skip


def read_both(body):
    """What the extension and `routing_fields` make of it; None: an ApiError."""
    try:
        general = routing_fields(names.PATH_CHAT, body, LIMITS)
    except ApiError:
        general = None
    return USUAL(body), general


def is_alike(body):
    usual, general = read_both(body)
    return usual is None or (usual == general and repr(usual) == repr(general))


@given(body=BODIES, ascii=st.booleans(), indent=st.sampled_from([None, 1]))
@settings(max_examples=500, deadline=None)
def test_of_any_body_both_read_the_same(body, ascii, indent):  # noqa: A002 - as json names it
    text = json.dumps(body, ensure_ascii=ascii, indent=indent)

    assert is_alike(text.encode("utf-8", "surrogatepass"))


def test_of_broken_bodies_nothing_is_taken_that_is_refused_without():
    rng, taken, differing = random.Random(3), 0, []
    for _ in range(20_000):
        body = bytearray(PLAIN)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(body) + 1)
            body[at : at + rng.choice([0, 0, 0, 1, 2, 8])] = rng.choice(PIECES)
        taken += USUAL(bytes(body)) is not None
        if not is_alike(bytes(body)):
            differing.append(bytes(body))
    assert differing == []
    assert taken > 200


@pytest.mark.parametrize("cut", range(len(PLAIN)))
def test_a_body_that_ends_too_early_is_not_taken(cut):
    assert USUAL(PLAIN[:cut]) is None


@pytest.mark.parametrize(
    "extra",
    [
        b"",
        b'"stream":true,"stream_options":{"include_usage":true},',
        b'"temperature":0.7,"top_p":1,"stop":["a","b\\n"],"seed":-3,',
        b'"max_tokens":100,"n":2,"user":"u","prompt_cache_key":"k","cache_salt":"salt","tools":null,',
        b'"metadata":{"a":[{},[],"b",null,false,1e5]},"prompt":null,',
        b'"add_generation_prompt":false,"continue_final_message":true,"reasoning_effort":"low",',
    ],
)
def test_usual_chats_are_taken(extra):
    body = b'{%b"model":"m","messages":[{"role":"system","content":""},{"content":"\xc3\xa9 \\"\\ud83d\\ude00\\n","role":"user"}]}'
    usual, general = read_both(body % extra)

    assert usual == general
    assert usual.messages[1] == ChatMessage(role="user", content='é "\U0001f600\n')


@pytest.mark.parametrize(
    "body",
    [
        PLAIN.replace(b'"m"', b'"m","model":"m"'),
        PLAIN.replace(b'"m"', b'"m","cache_salt":"1234567"'),
        PLAIN.replace(b'"m"', b'"m","n":1234567890123456789'),
        PLAIN.replace(b'"m"', b'"m","x":' + b"[" * 20 + b"]" * 20),
        PLAIN.replace(b'"m"', b'"m","x":[' + b"{}," * 5000 + b"1]"),
        PLAIN.replace(b'{"role":"user","content":"hi"}', b",".join([b'{"role":"user","content":"hi"}'] * 6)),
        PLAIN.replace(b"hi", b"x" * USUAL_BYTES),
        PLAIN + b"1",
        bytearray(PLAIN),
    ],
)
def test_what_is_out_of_the_ordinary_is_not_taken(body):
    assert USUAL(body) is None


def test_no_field_is_overlooked():
    """Each field of what is read, and of a message, changes the answer, or leaves the body to the other way."""
    values = {
        "n": 5,
        "max_tokens": 5,
        "max_completion_tokens": 5,
        "truncate_prompt_tokens": 5,
        "timeout_s": 5,
        "queue_timeout_s": 5,
    }
    values |= dict.fromkeys(["stream", "add_special_tokens", "add_generation_prompt", "continue_final_message"], True)
    values |= {
        "chat_template_kwargs": {},
        "tools": [],
        "model": None,
        "messages": None,
        "content": None,
        "tool_calls": [],
        "role": 1,
    }
    for name in (*RoutingFields.__struct_fields__, *ChatMessage.__struct_fields__):
        part = b'"role"' if name in ChatMessage.__struct_fields__ else b'"model"'
        usual = USUAL(
            PLAIN.replace(part, b'"%b":%b,%b' % (name.encode(), msgspec.json.encode(values.get(name, "x")), part))
        )
        assert usual is None or getattr(usual, name) == values.get(name, "x"), name


@pytest.mark.parametrize("parts", [None, native()])
def test_a_body_is_read_with_its_limits_and_by_its_path(parts):
    reader = BodyReader(Limits(max_body_bytes=len(PLAIN)), parts)

    assert reader.read(names.PATH_CHAT, PLAIN) == (routing_fields(names.PATH_CHAT, PLAIN), "m")
    assert reader.read(names.PATH_RERANK, PLAIN) == (None, "m")
    with pytest.raises(ApiError, match="large"):
        reader.read(names.PATH_CHAT, PLAIN + b" ")
    with pytest.raises(ApiError):
        reader.read(names.PATH_RESPONSES, PLAIN)
