"""What the router answers itself."""

import asyncio
import gzip
import io
import json
import zlib

import msgspec
import pytest

from quire_contract import names
from quire_contract.router_config import ModelEntry, RouterConfig
from quire_contract.router_settings import AdmissionSettings, RouterSettingsEntry

RAW_DEFLATE = zlib.compress(b'{"model": "m", "prompt": "x"}', wbits=-15)
EMPTY = RouterConfig(models=[ModelEntry(name="m"), ModelEntry(name="org/other")], endpoints=[])


async def error_of(answer):
    return (await answer.json())["error"]


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"{not json", 400, None, "invalid_json"),
        (b"", 400, None, "invalid_json"),
        (b'{"model": "m", "prompt": "\xff"}', 400, None, "invalid_json"),
        (b"[1]", 400, None, "invalid_type"),
        (b'{"model": 7, "prompt": "x"}', 400, "model", "invalid_type"),
        (b'{"model": "m", "prompt": "x", "stream": "yes"}', 400, "stream", "invalid_type"),
        (b'{"prompt": "x"}', 400, "model", "missing_required_parameter"),
        (b'{"model": "m"}', 400, "messages", None),
        (b'{"model": "nobody", "prompt": "x"}', 404, "model", "model_not_found"),
        (b'{"model": "m", "prompt": "%s"}' % (b"x" * 5_000_000), 413, None, "request_too_large"),
    ],
    ids=["broken", "empty", "utf-8", "array", "model type", "stream type", "no model", "no prompt", "unknown", "5 MB"],
)
async def test_a_body_that_no_worker_need_see_is_refused_at_once(body, status, param, code, start_router):
    router = await start_router(EMPTY)

    async with router.post(body) as answer:
        error = await error_of(answer)

    assert (answer.status, error["param"]) == (status, param)
    assert code is None or error["code"] == code
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
async def test_a_body_that_is_not_compressed_as_it_claims_is_the_clients_fault(chunked, start_router, logged):
    router = await start_router(EMPTY)
    headers = {"Content-Encoding": "gzip"}
    body = b"no gzip at all" * 100

    async with router.session.post(
        router.url + "/v1/completions", data=io.BytesIO(body) if chunked else body, headers=headers
    ) as answer:
        error = await error_of(answer)
    async with router.get("/metrics") as metrics:
        text = await metrics.text()

    assert (answer.status, error["code"]) == (400, "invalid_http")
    assert 'quire_router_requests_total{code="400",model="unknown"} 1.0' in text
    assert "level=error" not in logged()


async def test_a_compressed_body_reaches_the_worker_decoded(start_upstream, start_router, make_config):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)
    body = b'{"model": "m", "prompt": "x"}'

    async with router.session.post(
        router.url + "/v1/completions", data=gzip.compress(body), headers={"Content-Encoding": "gzip"}
    ) as answer:
        status = answer.status

    assert status == 200
    assert worker.bodies == [body]
    assert "Content-Encoding" not in worker.headers[0]


@pytest.mark.parametrize(
    ("encoding", "body", "status", "code"),
    [
        ("gzip", gzip.compress(b"a" * (64 << 20)), 413, "request_too_large"),
        ("gzip", gzip.compress(b"{}")[:-3], 400, "invalid_http"),
        ("gzip", gzip.compress(b"{}") + gzip.compress(b"{}"), 400, "invalid_http"),
        ("br", b"{}", 415, "unsupported_content_encoding"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}")), 415, "unsupported_content_encoding"),
    ],
    ids=["bomb", "cut", "twice", "unknown", "layers"],
)
async def test_a_compressed_body_is_decoded_no_further_than_a_body_may_go(encoding, body, status, code, start_router):
    router = await start_router(EMPTY)

    async with router.session.post(
        router.url + "/v1/completions", data=body, headers={"Content-Encoding": encoding}
    ) as answer:
        error = await error_of(answer)

    assert (answer.status, error["code"]) == (status, code)


@pytest.mark.parametrize("body", [zlib.compress(b'{"model": "m", "prompt": "x"}'), RAW_DEFLATE], ids=["zlib", "raw"])
async def test_both_kinds_of_deflate_are_decoded(body, start_upstream, start_router, make_config):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    async with router.session.post(
        router.url + "/v1/completions", data=body, headers={"Content-Encoding": "deflate"}
    ) as answer:
        status = answer.status

    assert status == 200
    assert worker.bodies == [b'{"model": "m", "prompt": "x"}']


async def test_a_failure_of_our_own_counts_as_a_500(start_upstream, start_router, make_config):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)
    router.app._pool._served["m"] = None  # any failure that nothing expects will do

    async with router.post({"model": "m", "prompt": "x"}) as answer:
        error = await error_of(answer)
    router.app._pool._by_model["m"] = ()
    async with router.get("/metrics") as metrics:
        text = await metrics.text()

    assert (answer.status, error["code"]) == (500, "internal_error")
    assert 'quire_router_requests_total{code="500",model="m"} 1.0' in text


async def test_an_unknown_model_is_told_which_ones_there_are(start_router):
    router = await start_router(EMPTY)

    async with router.post({"model": "nobody", "prompt": "x"}) as answer:
        error = await error_of(answer)

    assert "Served: m, org/other." in error["message"]


async def test_without_time_for_a_worker_to_come_a_known_model_without_one_is_unavailable_for_now(
    start_router, make_config, start_upstream
):
    worker = await start_upstream("a")
    worker.ready_status = 503
    at_once = RouterSettingsEntry(admission=AdmissionSettings(no_endpoint_timeout_s=0))
    router = await start_router(msgspec.structs.replace(make_config(worker), settings=at_once))

    async with router.post({"model": "m", "prompt": "x"}) as answer:
        error = await error_of(answer)

    assert (answer.status, answer.headers["Retry-After"], error["code"]) == (503, "1", "not_ready")
    assert answer.headers["x-quire-reason"] == "not_ready"
    assert "a not ready" in error["message"]


async def test_models_are_listed_whether_a_worker_is_ready_or_not(start_router):
    router = await start_router(EMPTY)

    async with router.get("/v1/models") as answer:
        listed = await answer.json()
    async with router.get("/v1/models/org/other") as answer:
        one = await answer.json()
    async with router.get("/v1/models/nobody") as missing:
        error = await error_of(missing)

    assert [card["id"] for card in listed["data"]] == ["m", "org/other"]
    assert one["object"] == "model"
    assert (missing.status, error["code"]) == (404, "model_not_found")


async def test_health_and_readiness_do_not_need_a_worker_or_a_key(start_router):
    router = await start_router(EMPTY, api_keys=("k",))

    async with router.get("/health") as health, router.get("/ready") as ready, router.get("/v1/models") as models:
        statuses = health.status, ready.status, models.status

    assert statuses == (200, 200, 401)


async def test_unknown_paths_and_methods_get_nested_errors(start_router):
    router = await start_router(EMPTY)

    async with router.get("/nowhere") as nowhere, router.get("/v1/completions") as wrong:
        errors = await error_of(nowhere), await error_of(wrong)

    assert (nowhere.status, errors[0]["code"]) == (404, "not_found")
    assert (wrong.status, wrong.headers["Allow"], errors[1]["code"]) == (405, "POST", "method_not_allowed")


async def test_every_promised_metric_is_exposed(start_router, start_upstream, make_config):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)
    async with router.post({"model": "m", "prompt": "x" * 600}):
        pass
    async with router.post({"model": "unheard of", "prompt": "x"}):
        pass

    async with router.get("/metrics") as answer:
        text = await answer.text()

    missing = [name for name in names.ROUTER_METRICS if f"# TYPE {name.removesuffix('_total')}" not in text]
    assert missing == []
    assert 'quire_router_requests_total{code="200",model="m"} 1.0' in text
    assert 'quire_router_requests_total{code="404",model="unknown"} 1.0' in text
    assert 'quire_router_endpoints{state="ready"} 1.0' in text
    assert "quire_router_choice_seconds_count 1.0" in text


async def test_debug_route_explains_choices_and_shows_no_prompt(start_router, start_upstream, make_config):
    workers = [await start_upstream("a"), await start_upstream("b")]
    router = await start_router(make_config(*workers))
    await router.until_ready(2)
    async with router.post({"model": "m", "prompt": "secret " * 100}, headers={"x-request-id": "mine"}):
        pass

    async with router.get("/debug/route?explain=1&request_id=mine") as answer:
        text, shown = await answer.text(), await answer.json()
    async with router.get("/debug/route?limit=many") as wrong:
        error = await error_of(wrong)
    async with router.get(f"/debug/route?limit={'9' * 5000}") as huge:
        huge_error = await error_of(huge)

    (decision,) = shown["decisions"]
    assert decision["endpoint"] in ("a", "b")
    assert decision["reason"]
    assert {candidate["endpoint"] for candidate in decision["candidates"]} == {"a", "b"}
    assert {endpoint["id"] for endpoint in shown["endpoints"]} == {"a", "b"}
    assert "secret" not in text
    assert (wrong.status, error["param"]) == (400, "limit")
    assert (huge.status, huge_error["param"]) == (400, "limit")


async def test_tokenize_goes_to_a_worker_even_without_a_model_if_there_is_only_one(
    start_router, start_upstream, make_config
):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    async with (
        router.post({"prompt": "x"}, "/tokenize") as first,
        router.post({"tokens": [1]}, "/detokenize") as second,
    ):
        statuses = first.status, second.status

    assert statuses == (200, 200)
    assert worker.bodies == [b'{"prompt": "x"}', b'{"tokens": [1]}']


async def test_a_request_leaves_one_line_without_its_prompt(start_router, start_upstream, make_config, logged):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    async with router.post({"model": "m", "prompt": "secret words"}, headers={"x-request-id": "mine"}):
        pass

    (line,) = [line for line in logged().splitlines() if "event=request" in line]
    assert "request_id=mine path=/v1/completions model=m status=200 attempts=1 " in line
    assert "endpoint=a" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "data",
    [
        b"GET /secret HTTP/1.1\r\nBad Header\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nx-secret: " + b"a" * 20_000 + b"\r\n\r\n",
        b"secret nonsense\r\n\r\n",
    ],
    ids=["header", "smuggling", "long header", "nonsense"],
)
async def test_bytes_that_are_no_http_get_a_nested_error_and_leave_no_trace_of_themselves(data, start_router, logged):
    router = await start_router(EMPTY)
    host, port = router.url.removeprefix("http://").split(":")

    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    async with router.get("/health") as after:
        healthy = after.status

    assert head.split(b" ")[1] == b"400"
    assert json.loads(body)["error"]["code"] == "invalid_http"
    assert "event=bad_http" in logged()
    assert "secret" not in logged().lower()
    assert healthy == 200
