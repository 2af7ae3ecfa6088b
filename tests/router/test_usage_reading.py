"""What answers say of the tokens that they took, in the forms of all APIs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_contract.router_config import ModelEntry, RouterConfig
from quire_contract.router_tenants import PriceEntry
from quire_router.call import Usage
from quire_router.native.library import native
from quire_router.prices import Prices, decimal_of, nano, price_of
from quire_router.usage.reading import StreamUsage, body_reader, usage_of_body

CHAT = b'{"id":"x","usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":6}}}'
SPACED = b'{"usage" : {"prompt_tokens": 9, "completion_tokens": 4}}'
RESPONSE = (
    b'{"object":"response","usage":{"input_tokens":9,"output_tokens":4,"input_tokens_details":{"cached_tokens":6}}}'
)
MESSAGE = b'{"type":"message","usage":{"input_tokens":3,"cache_read_input_tokens":6,"output_tokens":4}}'
EMBEDDING = b'{"object":"list","usage":{"prompt_tokens":9,"total_tokens":9}}'


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (CHAT, Usage(prompt=9, cached=6, output=4)),
        (SPACED, Usage(prompt=9, output=4)),
        (RESPONSE, Usage(prompt=9, cached=6, output=4)),
        (MESSAGE, Usage(prompt=9, cached=6, output=4)),
        (EMBEDDING, Usage(prompt=9)),
        (b'{"usage":null}', None),
        (b'{"usage":"many"}', None),
        (b'{"usage":{"prompt_tokens":-5,"completion_tokens":-1}}', Usage()),
        (b"no json", None),
        (b'{"text":"say \\"usage\\":{}"}', None),
    ],
)
def test_a_whole_answer_is_read_in_every_apis_form(body, usage):
    assert usage_of_body(body) == usage
    assert body_reader(native())(body) == usage


def of_chat(*members):
    return b'{"usage":{%b}}' % b",".join(members)


PROMPT, OUTPUT = b'"prompt_tokens":9', b'"completion_tokens":4'


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (CHAT, (9, 6, 4)),
        (CHAT.replace(b'"x"', b'"\\u00e9 \xc3\xa9 \xf0\x9f\x98\x80 \\n \\"usage\\":{"'), (9, 6, 4)),
        (
            b' {"a" : [1, -2.5, {"b": [ ]}, true, null] , "usage" : { "prompt_tokens" : 0 , "completion_tokens" : 4 } }\n',
            (0, 0, 4),
        ),
        (of_chat(PROMPT, OUTPUT, b'"prompt_tokens_details":null,"other":{"cached_tokens":3}'), (9, 0, 4)),
        (of_chat(PROMPT, OUTPUT, b'"prompt_tokens_details":{"cached_tokens":null,"audio":0}'), (9, 0, 4)),
        (of_chat(PROMPT), None),
        (of_chat(PROMPT, OUTPUT, PROMPT), None),
        (of_chat(PROMPT, b'"completion_tokens":04'), None),
        (of_chat(PROMPT, b'"completion_tokens":4.0'), None),
        (of_chat(PROMPT, b'"completion_tokens":-4'), None),
        (of_chat(PROMPT, b'"completion_tokens":4000000000000000'), None),
        (of_chat(PROMPT, OUTPUT, b'"input_tokens":1'), None),
        (of_chat(PROMPT, OUTPUT)[:-1] + b',"usage":null}', None),
        (of_chat(PROMPT, OUTPUT)[:-1] + b',"message":{}}', None),
        (of_chat(PROMPT, OUTPUT)[:-1] + b',"us\\u0061ge":null}', None),
        (of_chat(PROMPT, OUTPUT)[:-1] + b',"a":"\xc0\xaf"}', None),
        (of_chat(PROMPT, OUTPUT)[:-1] + b',"a":"\\ud83d"}', None),
        (of_chat(PROMPT, OUTPUT) + b"x", None),
        (of_chat(PROMPT, OUTPUT)[:-1], None),
        (b'{"a":' + b"[" * 100_000, None),
        (b'{"usage"  :{"prompt_tokens":9,"completion_tokens":4}}', None),
        (b"", None),
    ],
)
def test_only_what_is_certain_is_read_without_making_anything_of_it(body, found):
    assert native().chat_usage(body) == found


_WORDS = (
    b'"usage" "message" "prompt_tokens" "completion_tokens" "prompt_tokens_details" "cached_tokens" "input_tokens" "a\\u00e9\xc3\xa9" "\\x"'
    b' { } [ ] : , 1 01 1.5 -2 1e3 null true \n \t " \\ \xff'
).split(b" ")


@given(
    st.one_of(st.lists(st.sampled_from([*_WORDS, b" "]), max_size=30).map(b"".join), st.binary(max_size=60)),
    st.integers(0, 200),
    st.booleans(),
)
def test_both_ways_of_reading_say_the_same_whatever_comes(noise, place, replaces):
    for sample in (CHAT, SPACED, MESSAGE):
        body = sample[:place] + noise + sample[place + len(noise) if replaces else place :]
        assert body_reader(native())(body) == usage_of_body(body)
    assert body_reader(native())(noise) == usage_of_body(noise)


CHUNKS = [
    b'data: {"choices":[{"text":"\\"usage\\":"}],"usage":null}\n\n',
    b"data: " + CHAT + b"\n\n",
    b"data: [DONE]\n\n",
]
RESPONSES = [
    b'event: a\ndata: {"type":"x"}\n\n',
    b'data: {"type":"response.completed","response":' + RESPONSE + b"}\n\n",
]
MESSAGES = [
    b'event: message_start\ndata: {"message":{"usage":{"input_tokens":3,"cache_read_input_tokens":6,"output_tokens":1}}}\n\n',
    b'data: {"type":"content_block_delta"}\n\n',
    b'data: {"type":"message_delta","usage":{"output_tokens":4}}\n\n',
]


@pytest.mark.parametrize(
    "parts", [CHUNKS, [b"".join(CHUNKS)], RESPONSES, MESSAGES], ids=["chat", "one part", "responses", "messages"]
)
def test_a_stream_is_read_in_every_apis_form_however_it_is_cut(parts):
    seen = StreamUsage()

    for part in parts:
        seen.see(part)

    assert seen.usage() == Usage(prompt=9, cached=6, output=4)
    assert seen.num_events == b"".join(parts).count(b"\n\n")


def test_a_stream_that_says_nothing_has_its_events_counted():
    seen = StreamUsage()

    for _ in range(5):
        seen.see(b'data: {"choices":[]}\n\n')

    assert (seen.usage(), seen.num_events) == (None, 5)


def test_costs_are_exact_whole_numbers():
    prices = Prices()
    prices.swap(
        RouterConfig(
            models=[ModelEntry(name="m", price=PriceEntry(input="0.000000001", output="999999999999.999999999"))],
            endpoints=[],
        )
    )
    price = prices.of("m")

    assert prices.of("other") is None
    assert price.cost(Usage(prompt=1_000_000)) == 1
    assert [price.cost(Usage(prompt=n)) for n in (499_999, 500_000)] == [0, 1]
    assert price.cost(Usage(output=1_000_000)) == 999_999_999_999_999_999_999
    assert price_of(PriceEntry(input="2", cached_input="0.5", output="0")).cost(Usage(prompt=10, cached=4)) == 14_000
    assert price_of(PriceEntry(input="2")).cost(Usage(prompt=10, cached=99)) == 20_000


def test_billionths_and_decimals_are_the_same_numbers():
    for text in ("0", "12.5", "0.000000001", "1000000", "100"):
        assert decimal_of(nano(text)) == text
    assert decimal_of(-1_500_000_000) == "-1.5"
