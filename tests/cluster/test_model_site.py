"""The web server that tests give to pods."""

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest

from cluster.model_site import ModelSite

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ModelSite]:
    """One file of 256,000 bytes, below /model."""
    (tmp_path / "weights.bin").write_bytes(CONTENT)
    with ModelSite("127.0.0.1", {"/model": tmp_path}) as started:
        yield started


def get(url: str, **headers: str) -> HTTPResponse:
    """The answer, whose body is still to be read."""
    request = urllib.request.Request(url, headers={name.replace("_", "-"): text for name, text in headers.items()})
    answer: HTTPResponse = urllib.request.urlopen(request, timeout=60)
    return answer


def test_a_range_of_the_same_version_is_answered_from_its_first_byte(site: ModelSite) -> None:
    url = f"{site.url}/model/weights.bin"
    with get(url) as whole:
        etag, everything = whole.headers["ETag"], whole.read()

    with get(url, Range="bytes=100000-", If_Range=etag) as rest:
        found = (rest.status, rest.headers["Content-Range"], rest.read())
    with get(url, Range="bytes=100000-", If_Range='"another"') as changed:
        assert (changed.status, changed.read()) == (200, CONTENT)

    assert everything == CONTENT
    assert found == (206, "bytes 100000-255999/256000", CONTENT[100_000:])
    assert [(asked.first_byte, asked.num_bytes) for asked in site.resumed("weights.bin")] == [(100_000, 156_000)]


def test_what_is_not_there_and_who_has_no_token_is_refused(site: ModelSite) -> None:
    for path in ("/model/none", "/weights.bin", "/model/../model/weights.bin"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(site.url + path)

    site.token = "right"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(f"{site.url}/model/weights.bin", Authorization="Bearer wrong")
    with get(f"{site.url}/model/weights.bin", Authorization="Bearer right") as answer:
        assert answer.read() == CONTENT


def test_a_rate_bounds_all_answers_together(site: ModelSite) -> None:
    site.bytes_per_s = 500_000

    began = time.monotonic()
    with get(f"{site.url}/model/weights.bin") as answer:
        assert answer.read() == CONTENT

    assert time.monotonic() - began >= 0.45
