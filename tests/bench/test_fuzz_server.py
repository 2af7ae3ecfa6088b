"""The schema fuzzer on a worker with the demo model, in small; and that it sees what it looks for."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fuzz_server import Spec, demo_worker, mutated_case, valid_case
from hypothesis import given, settings
from hypothesis import strategies as st
from schema_bodies import Maker

RANDOMS = st.randoms(use_true_random=False)
SMALL = settings(max_examples=60, deadline=None, database=None)


class Asked:
    """A worker, and what it says of itself."""

    def __init__(self, url: str) -> None:
        self._address = url.removeprefix("http://")
        self.spec = Spec(json.loads(self.ask("GET", "/openapi.json", None)[2]))

    def ask(self, method: str, path: str, data: bytes | None) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(self._address, timeout=120)
        try:
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, (answer.headers["Content-Type"] or "").partition(";")[0], answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    with demo_worker() as url:
        yield Asked(url)


def judge(asked: Asked, path: str, data: bytes, fits: bool | None) -> int:
    status, media, answer = asked.ask("POST", path, data)
    assert status < 500, answer
    assert asked.spec.problem(path, status, media, answer) is None
    assert fits is not False or status >= 400, "a body outside its schema was taken"
    return status


@SMALL
@given(rng=RANDOMS)
def test_a_body_by_the_schema_is_answered_by_the_schema(asked: Asked, rng: Any) -> None:
    path, data, fits = valid_case(asked.spec, rng)

    judge(asked, path, data, fits)


@SMALL
@given(rng=RANDOMS)
def test_a_body_outside_the_schema_is_refused_by_the_schema(asked: Asked, rng: Any) -> None:
    path, data, fits = mutated_case(asked.spec, rng)

    judge(asked, path, data, fits)


@given(rng=RANDOMS)
@settings(max_examples=200, deadline=None, database=None)
def test_what_is_made_by_a_schema_fits_it(asked: Asked, rng: Any) -> None:
    maker = Maker(components=asked.spec.components)
    path = rng.choice(asked.spec.paths)

    assert asked.spec.fits(path, asked.spec.body(path, rng))
    assert asked.spec.fits(path, maker.make(asked.spec.body_schema(path), rng))


def test_the_fuzzer_sees_an_answer_outside_the_schema(asked: Asked) -> None:
    good = asked.ask("POST", "/tokenize", b'{"prompt": "hi"}')
    stream = asked.ask("POST", "/v1/completions", b'{"model": "quire-demo", "prompt": "hi", "stream": true}')

    assert asked.spec.problem("/tokenize", *good) is None
    assert asked.spec.problem("/v1/completions", *stream) is None
    assert "count" in (asked.spec.problem("/tokenize", 200, "application/json", b'{"count": "2"}') or "")
    assert "not in the document" in (asked.spec.problem("/tokenize", 418, "application/json", b"{}") or "")
    assert asked.spec.problem("/v1/completions", stream[0], stream[1], stream[2] + b"data: {}\n\n") is not None
    assert not asked.spec.fits("/tokenize", {"prompt": 3})
