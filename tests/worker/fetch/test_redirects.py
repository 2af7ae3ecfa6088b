"""Redirects, proxies and URLs in messages: nothing secret goes where it should not."""

import pytest

from quire_worker.fetch.errors import FetchError
from quire_worker.fetch.web_client import Proxies, _followed, shown
from tests.worker.fetch.conftest import Fault, Fetch, Site, model, serving


def test_a_shown_url_has_neither_user_nor_query() -> None:
    assert shown("https://me:pw@host.example:8443/a/b?X-Amz-Signature=abc#f") == "https://host.example:8443/a/b"


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("https://a/x/y", "/z", "https://a/z"),
        ("https://a/x/y", "z", "https://a/x/z"),
        ("http://a/x", "https://b/z", "https://b/z"),
        ("http://a/x", "http://b/z", "http://b/z"),
    ],
)
def test_a_redirect_is_followed(url: str, location: str, target: str) -> None:
    assert _followed(url, location) == target


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://a/x", "redirects from https to http"),
        ("file:///etc/passwd", "no web address"),
        ("ftp://a/x", "no web address"),
    ],
)
def test_a_redirect_that_leads_astray_is_refused(location: str, message: str) -> None:
    with pytest.raises(FetchError, match=message):
        _followed("https://a/x", location)


async def test_redirects_in_a_circle_end(site: Site, fetch: Fetch) -> None:
    site.redirects["/m/config.json"] = "/m/config.json"

    with pytest.raises(FetchError, match="more than 10 redirects"):
        await fetch(uri=f"{site.url}/m")


async def test_a_token_comes_back_with_the_way_back_to_its_own_host(site: Site, fetch: Fetch) -> None:
    async with serving(Site()) as other:
        site.files |= {f"/m/{name}": data for name, data in model().items()}
        site.redirects["/m/config.json"] = f"{other.url}/x"
        other.redirects["/x"] = f"{site.url}/m2/config.json"
        site.files["/m2/config.json"] = model()["config.json"]

        await fetch(uri=f"{site.url}/m", token="t0ken")

        assert "authorization" not in other.requests("/x")[0].headers
        assert site.requests("/m2/config.json")[0].headers["authorization"] == "Bearer t0ken"


def test_proxies_are_chosen_by_scheme_and_left_out_by_name() -> None:
    proxies = Proxies({"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "models.internal,.example"})

    assert proxies.proxy_for("https://huggingface.co/x") == "http://proxy:3128"
    assert proxies.proxy_for("http://huggingface.co/x") is None
    assert proxies.proxy_for("https://models.internal:8443/x") is None
    assert proxies.proxy_for("https://a.example/x") is None


async def test_a_proxy_is_asked_for_http_sources(site: Site, fetch: Fetch) -> None:
    site.files |= {f"/m/{name}": data for name, data in model().items()}

    await fetch(uri="http://models.example/m", proxies={"HTTP_PROXY": site.url})

    assert {seen.headers["host"] for seen in site.seen} == {"models.example"}


async def test_compressed_answers_are_refused_since_their_bytes_are_not_the_files(site: Site, fetch: Fetch) -> None:
    site.files |= {f"/m/{name}": data for name, data in model().items()}
    site.headers["Content-Encoding"] = "br"

    with pytest.raises(FetchError, match="comes as br"):
        await fetch(uri=f"{site.url}/m")


async def test_a_retry_after_is_obeyed_only_up_to_a_minute(site: Site, fetch: Fetch) -> None:
    site.files |= {f"/m/{name}": data for name, data in model().items()}
    site.faults["/m/config.json"] = [Fault(status=429, headers={"Retry-After": "999999"})]

    progress = await fetch(uri=f"{site.url}/m")

    assert progress.phase == "done"
