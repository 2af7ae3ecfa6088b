"""s3:// sources: signatures as the store computes them, pages, regions, and ETags that are checksums or are not."""

import hashlib
import hmac
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
from aiohttp import web

from quire_worker.fetch.errors import FetchError, Reason
from quire_worker.fetch.sigv4 import Credentials, encode_query, sign_get
from tests.worker.fetch.conftest import Fault, Fetch, Site, contents, model, sharded_model

WRONG = Credentials(access_key_id="A", secret_access_key="wrong")
KEY = Credentials(access_key_id="AKIAIOSFODNN7EXAMPLE", secret_access_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")


class Store:
    """The S3 behaviour of a Site: lists its bucket, and checks signatures by its own reading of the specification."""

    def __init__(self, site: Site, credentials: Credentials | None, page_size: int = 1000) -> None:
        self.site = site
        self.credentials = credentials
        self.page_size = page_size
        self.region = "us-east-1"
        site.answer = self.answer

    def put(self, files: dict[str, bytes], prefix: str = "models/tiny/", multipart: bool = False) -> None:
        for name, data in files.items():
            path = f"/bucket/{prefix}{name}"
            self.site.files[path] = data
            md5 = hashlib.md5(data).hexdigest()
            self.site.etags[path] = f'"{md5}-3"' if multipart else f'"{md5}"'

    def answer(self, request: web.Request) -> web.Response | None:
        if self.credentials is not None and not self._is_signed(request, self.credentials):
            return self._error(403, "SignatureDoesNotMatch" if "Authorization" in request.headers else "AccessDenied")
        if not request.path.startswith("/bucket"):
            return self._error(404, "NoSuchBucket")
        return self._list(request) if request.path == "/bucket" else None

    def _error(self, status: int, code: str) -> web.Response:
        return web.Response(
            status=status,
            text=f"<Error><Code>{code}</Code><Message>m</Message></Error>",
            content_type="application/xml",
        )

    def _list(self, request: web.Request) -> web.Response:
        prefix = request.query["prefix"]
        keys = sorted(path.removeprefix("/bucket/") for path in self.site.files if path.startswith(f"/bucket/{prefix}"))
        start = int(request.query.get("continuation-token", "0"))
        page = keys[start : start + self.page_size]
        more = start + self.page_size < len(keys)
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.site.files[f'/bucket/{key}'])}</Size>"
            f"<ETag>{escape(self.site.etags[f'/bucket/{key}'] or '')}</ETag></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{start + self.page_size}</NextContinuationToken>" if more else ""
        text = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        )
        return web.Response(text=text, content_type="application/xml")

    def _is_signed(self, request: web.Request, credentials: Credentials) -> bool:
        authorization = request.headers.get("Authorization", "")
        if not authorization.startswith("AWS4-HMAC-SHA256 "):
            return False
        fields = dict(part.strip().split("=", 1) for part in authorization.partition(" ")[2].split(","))
        _, day, region, service, _ = fields["Credential"].split("/")
        headers = "".join(f"{name}:{request.headers[name].strip()}\n" for name in fields["SignedHeaders"].split(";"))
        raw_path, _, raw_query = request.raw_path.partition("?")
        query = "&".join(sorted(raw_query.split("&"))) if raw_query else ""
        canonical = (
            f"GET\n{raw_path}\n{query}\n{headers}\n{fields['SignedHeaders']}\n{request.headers['x-amz-content-sha256']}"
        )
        digest, scope = hashlib.sha256(canonical.encode()).hexdigest(), f"{day}/{region}/{service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{request.headers['x-amz-date']}\n{scope}\n{digest}"
        key = b"AWS4" + credentials.secret_access_key.encode()
        for part in (day, region, service, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.digest(key, text.encode(), "sha256").hex() == fields["Signature"]


@pytest.mark.parametrize(
    ("query", "signature"),
    [
        ([("lifecycle", "")], "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ([("prefix", "J"), ("max-keys", "2")], "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)
def test_signatures_are_those_of_the_specifications_examples(query: list[tuple[str, str]], signature: str) -> None:
    headers = sign_get(
        host="examplebucket.s3.amazonaws.com", path="/", query=encode_query(query), region="us-east-1",
        credentials=KEY, now=datetime(2013, 5, 24, tzinfo=UTC),
    )  # fmt: skip

    assert headers["Authorization"].endswith(f"Signature={signature}")


async def test_a_signed_model_is_fetched(site: Site, fetch: Fetch, dest: Path) -> None:
    store, files = Store(site, KEY), sharded_model()
    store.put(files)

    await fetch(uri="s3://bucket/models/tiny", s3_endpoint=site.url, s3_credentials=KEY)

    assert contents(dest) == files


async def test_a_public_bucket_is_read_without_credentials(site: Site, fetch: Fetch, dest: Path) -> None:
    store, files = Store(site, None), model()
    store.put(files, prefix="")

    await fetch(uri="s3://bucket", s3_endpoint=site.url)

    assert contents(dest) == files
    assert all("authorization" not in seen.headers for seen in site.seen)


async def test_keys_are_quoted_as_they_are_signed(site: Site, fetch: Fetch, dest: Path) -> None:
    store, files = Store(site, KEY), model()
    store.put(files, prefix="my models/a+b=c/ü/")

    await fetch(uri=f"s3://bucket/{'my models/a+b=c/ü'}", s3_endpoint=site.url, s3_credentials=KEY)

    assert contents(dest) == files
    assert quote("ü") == "%C3%BC"


async def test_long_listings_come_in_pages(site: Site, fetch: Fetch, dest: Path) -> None:
    store, files = Store(site, KEY, page_size=2), sharded_model(shards=5)
    store.put(files)

    await fetch(uri="s3://bucket/models/tiny/", s3_endpoint=site.url, s3_credentials=KEY)

    assert contents(dest) == files
    assert len(site.requests("/bucket")) == 5


async def test_a_prefix_does_not_match_its_namesakes(site: Site, fetch: Fetch, dest: Path) -> None:
    store, files = Store(site, None), model()
    store.put(files)
    store.put({"config.json": b"another"}, prefix="models/tiny-2/")

    await fetch(uri="s3://bucket/models/tiny", s3_endpoint=site.url)

    assert contents(dest) == files


async def test_an_md5_that_differs_twice_is_a_checksum_mismatch(site: Site, fetch: Fetch) -> None:
    store = Store(site, None)
    store.put(model())
    site.faults["/bucket/models/tiny/model.safetensors"] = [Fault(corrupt=True)] * 2

    with pytest.raises(FetchError, match="differs from the md5") as caught:
        await fetch(uri="s3://bucket/models/tiny", s3_endpoint=site.url)

    assert caught.value.reason is Reason.CHECKSUM_MISMATCH


async def test_the_etag_of_an_object_with_a_key_of_its_own_is_no_checksum(site: Site, fetch: Fetch, dest: Path) -> None:
    store, files = Store(site, None), model()
    store.put(files)
    site.etags = dict.fromkeys(site.etags, f'"{"0" * 32}"')
    site.headers["x-amz-server-side-encryption"] = "aws:kms"

    await fetch(uri="s3://bucket/models/tiny", s3_endpoint=site.url)

    assert contents(dest) == files


async def test_an_object_uploaded_in_parts_is_continued_by_its_etag(site: Site, fetch: Fetch, dest: Path) -> None:
    store, files = Store(site, KEY), model(1_000_000)
    store.put(files, multipart=True)
    path = "/bucket/models/tiny/model.safetensors"
    site.faults[path] = [Fault(cut_after=700_000)]

    await fetch(uri="s3://bucket/models/tiny", s3_endpoint=site.url, s3_credentials=KEY)

    assert contents(dest) == files
    assert site.requests(path)[1].headers["if-range"] == site.etags[path]


@pytest.mark.parametrize(
    ("uri", "credentials", "reason", "message"),
    [
        ("s3://bucket/models/tiny", None, Reason.UNAUTHORIZED, "name a Secret with keys AWS_ACCESS_KEY_ID"),
        ("s3://bucket/models/tiny", WRONG, Reason.UNAUTHORIZED, "credentials need s3:ListBucket"),
        ("s3://other/models/tiny", KEY, Reason.NOT_FOUND, "NoSuchBucket"),
        ("s3://bucket/models/none", KEY, Reason.NOT_FOUND, "has no objects; correct spec.model.uri"),
    ],
)  # fmt: skip
async def test_refusals_name_the_fix(
    site: Site, fetch: Fetch, uri: str, credentials: Credentials | None, reason: Reason, message: str
) -> None:
    Store(site, KEY).put(model())

    with pytest.raises(FetchError) as caught:
        await fetch(uri=uri, s3_endpoint=site.url, s3_credentials=credentials)

    assert caught.value.reason is reason
    assert message in str(caught.value)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("body", ["<html/>", "<!DOCTYPE x [<!ENTITY a 'b'>]><ListBucketResult/>", "not xml"])
async def test_an_answer_that_is_no_listing_is_not_believed(site: Site, fetch: Fetch, body: str) -> None:
    site.answer = lambda request: web.Response(text=body, content_type="application/xml")

    with pytest.raises(FetchError, match="answers, but not as an S3 store"):
        await fetch(uri="s3://bucket/models/tiny", s3_endpoint=site.url, retry_for_s=60)
