"""Bodies that two readers might read differently: what the router decides by is what the worker reads, or one of them refuses."""

import json

import pytest

from quire_contract.openai.decode import decode_request
from quire_contract.openai.embedding_requests import EmbeddingRequest, decode_embedding_request, input_list
from quire_contract.openai.errors import ApiError
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import ChatCompletionRequest, CompletionRequest
from quire_contract.routing import routing_fields
from quire_router.bodies import _model_of
from quire_router.filtering.bodies import texts_of, with_texts
from quire_router.splitting import with_field, with_model

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
KINDS = {CHAT: ChatCompletionRequest, COMPLETIONS: CompletionRequest}
LIMITS = Limits()

TALK = b'"messages": [{"role": "user", "content": "hi"}]'
COMPLETING = [
    b'{"model": "a", "model": "b", "prompt": "x"}',
    b'{"model": "a", "prompt": "x", "model": "b"}',
    b'{"model": "a", "mod\\u0065l": "b", "prompt": "x"}',
    b'{"mod\\u0065l": "b", "prompt": "x"}',
    b'{"model": "a", "model\\u0000": "b", "prompt": "x"}',
    b'{"model": "a", "Model": "b", "MODEL": "c", " model": "d", "prompt": "x"}',
    b'{"model": "a", "model": null, "prompt": "x"}',
    b'{"model": null, "model": "b", "prompt": "x"}',
    b'{"model": "a", "model": ["b"], "prompt": "x"}',
    b'{"model": ["b"], "model": "a", "prompt": "x"}',
    b'{"model": "a", "prompt": "good", "prompt": "bad"}',
    b'{"model": "a", "prompt": "good", "pr\\u006fmpt": "bad"}',
    b'{"model": "a", "prompt": ["good"], "prompt": [1, 2]}',
    b'{"model": "a", "prompt": "x", "stream": false, "stream": true}',
    b'{"model": "a", "prompt": "x", "stream": true, "stream": false}',
    b'{"model": "a", "prompt": "x", "stream": 1}',
    b'{"model": "a", "prompt": "x", "n": 1, "n": 16}',
    b'{"model": "a", "prompt": "x", "max_tokens": 1, "max_tokens": 99999}',
    b'{"model": "a", "prompt": "x", "max_tokens": 1.0}',
    b'{"model": "a", "prompt": "x", "max_tokens": 1e2}',
    b'{"model": "a", "prompt": "x", "max_tokens": 1.0, "max_tokens": 7}',
    b'{"model": "a", "prompt": "x", "max_tokens": 7, "max_tokens": 1.0, "n": 2.0}',
    b'{"model": "a", "prompt": "x", "max_tokens": 1E400}',
    b'{"model": "a", "prompt": "x", "max_tokens": 1e999999999}',
    b'{"model": "a", "prompt": "x", "max_tokens": -0}',
    b'{"model": "a", "prompt": "x", "max_tokens": -0.0}',
    b'{"model": "a", "prompt": "x", "max_tokens": 99999999999999999999999999}',
    b'{"model": "a", "prompt": "x", "max_tokens": 007}',
    b'{"model": "a", "prompt": "x", "temperature": NaN}',
    b'{"model": "a", "prompt": "x", "temperature": Infinity}',
    b'{"model": "a", "prompt": "x", "temperature": 1e400}',
    b'{"model": "a", "prompt": "x", "temperature": "0"}',
    b'{"model": "a", "prompt": "x", "cache_salt": "1", "cache_salt": "2"}',
    b'{"model": "a", "prompt": "x", "timeout_s": 5, "timeout_s": null}',
    b'\xef\xbb\xbf{"model": "a", "prompt": "x"}',
    b'{"model": "a", "prompt": "x"} {"model": "b", "prompt": "x"}',
    b'{"model": "a", "prompt": "x"}\x00',
    b'{"model": "a", "prompt": "x",}',
    b'{"model": "a", /* "model": "b", */ "prompt": "x"}',
    b"{'model': 'a', 'prompt': 'x'}",
    b'{"model": "a", "prompt": "\xc0\xaf"}',
    b'{"model": "a", "prompt": "\xed\xa0\x80"}',
    b'{"model": "a", "prompt": "\\ud800"}',
    b'{"model": "a", "prompt": "\\udc00\\ud800"}',
    b'{"model": "a", "prompt": "line\nfeed"}',
    b'{"model": "\\u0061", "prompt": "x"}',
    '{"model": "a", "prompt": "x"}'.encode("utf-16"),
    '{"model": "a", "prompt": "x"}'.encode("utf-32"),
    b'[{"model": "a", "prompt": "x"}]',
    b'"model"',
    b"null",
    b"",
    b"   ",
    b'{"model": "a", "prompt": "x", "metadata": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
    b'{"model": "a", "prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"model": "a", "prompt": "x", "messages": [{"role": "user", "content": "hi"}]}',
]
CHATTING = [
    b'{"model": "a", ' + TALK + b', "messages": [{"role": "user", "content": "other"}]}',
    b'{"model": "a", "messages": [{"role": "user", "content": "good", "content": "bad"}]}',
    b'{"model": "a", "messages": [{"role": "user", "role": "system", "content": "x"}]}',
    b'{"model": "a", "messages": [{"role": "user", "content": [{"type": "text", "text": "a", "text": "b"}]}]}',
    b'{"model": "a", "max_tokens": 5, "max_completion_tokens": 9, ' + TALK + b"}",
    b'{"model": "a", "max_tokens": 5, "max_completion_tokens": null, ' + TALK + b"}",
    b'{"model": "a", "max_completion_tokens": 5, "max_completion_tokens": 9, ' + TALK + b"}",
    b'{"model": "a", "chat_template_kwargs": {"thinking": true, "thinking": false}, ' + TALK + b"}",
    b'{"model": "a", "tools": [], "tools": null, ' + TALK + b"}",
    b'{"model": "a", ' + TALK + b', "prompt": null}',
]
BODIES = [(COMPLETIONS, body) for body in COMPLETING] + [(CHAT, body) for body in CHATTING]


def told(read, *values):
    """What somebody makes of a body; None: a refusal."""
    try:
        return read(*values)
    except ApiError as error:
        assert 400 <= error.status < 500
        return None


@pytest.mark.parametrize(("path", "body"), BODIES, ids=range(len(BODIES)))
def test_router_and_worker_read_the_same_or_one_of_them_refuses(path, body):
    router = told(routing_fields, path, body, LIMITS)
    worker = told(decode_request, KINDS[path], body)

    if router is not None and worker is not None:
        for field in ("model", "stream", "n", "max_tokens", "cache_salt", "timeout_s", "user"):
            assert getattr(router, field) == getattr(worker, field)
        assert router.prompt_input() == worker.prompt_input()
        assert told(_model_of, body) == worker.model


@pytest.mark.parametrize(("path", "body"), BODIES, ids=range(len(BODIES)))
def test_filters_see_the_texts_that_the_worker_gets(path, body):
    worker = told(decode_request, KINDS[path], body)
    places = told(texts_of, body)

    if worker is not None:
        assert places is not None
        seen = {place.text for place in places} | {str(place.ids) for place in places}
        source = worker.prompt_input()
        texts = [m["content"] for m in source.messages] if path == CHAT else source.prompts
        assert {text if isinstance(text, str) else str(text) for text in texts} <= seen


@pytest.mark.parametrize(("path", "body"), BODIES, ids=range(len(BODIES)))
def test_a_body_that_is_written_anew_says_each_thing_once_and_to_every_reader(path, body):
    if told(decode_request, KINDS[path], body) is None:
        return
    place = next(place for place in texts_of(body) if place.ids is None) if texts_of(body)[0].ids is None else None

    written = with_field(with_model(body, "target"), "max_tokens", 3)
    written = written if place is None else with_texts(written, {place.path: "other"})

    names = [name for name, _ in json.loads(written, object_pairs_hook=list)]
    assert sorted(names) == sorted(set(names))
    again = told(decode_request, KINDS[path], written)
    if again is not None:  # max_completion_tokens may contradict
        assert (again.model, again.max_tokens) == ("target", 3)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "a", "input": "good", "input": "bad"}',
        b'{"model": "a", "model": "b", "input": ["x", "y"]}',
        b'{"model": "a", "input": [[1, 2], [3]], "inp\\u0075t": [4]}',
        b'{"model": "a", "input": "x", "model": 5}',
    ],
)
def test_of_inputs_that_are_embedded_the_same_is_read(body):
    worker = told(decode_embedding_request, EmbeddingRequest, body)

    if worker is None:
        assert told(_model_of, body) is None
    else:
        assert told(_model_of, body) == worker.model
        assert [place.text or place.ids for place in texts_of(body)] == input_list(worker)
