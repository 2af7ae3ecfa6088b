"""What the client sends, and what it makes of answers."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from quire_contract.kube.access import KubeAccess
from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.resources import CONFIG_MAP, DEPLOYMENT, INFERENCE_SERVICE, NAMESPACE


def client_of(access: KubeAccess | None) -> KubeClient:
    assert access is not None
    return KubeClient(access, user_agent="quire-test")


def test_paths_are_those_of_the_api_server() -> None:
    assert CONFIG_MAP.path("a", "b") == "/api/v1/namespaces/a/configmaps/b"
    assert DEPLOYMENT.path(None) == "/apis/apps/v1/deployments"
    assert INFERENCE_SERVICE.path("a", "b", "status").endswith("/namespaces/a/inferenceservices/b/status")
    assert NAMESPACE.path(None, "a") == "/api/v1/namespaces/a"
    assert CONFIG_MAP.path("a", "../b") == "/api/v1/namespaces/a/configmaps/..%2Fb"


async def test_a_list_is_read_in_pages_and_its_items_say_what_they_are(api) -> None:
    api.lists = [
        {"metadata": {"resourceVersion": "5", "continue": "more"}, "items": [{"metadata": {"name": "a"}}]},
        {"metadata": {"resourceVersion": "5"}, "items": [{"metadata": {"name": "b"}}]},
    ]

    async with client_of(api.access) as client:
        items, version = await client.list(DEPLOYMENT, "here", "app=x", limit=1)

    assert [item["metadata"]["name"] for item in items] == ["a", "b"]
    assert items[0]["apiVersion"] == "apps/v1"
    assert items[0]["kind"] == "Deployment"
    assert version == "5"
    assert api.asked[1]["query"] == {"limit": "1", "labelSelector": "app=x", "continue": "more"}


async def test_an_apply_names_its_field_manager_and_forces(api) -> None:
    api.lists = [{"metadata": {"name": "a"}}]

    async with client_of(api.access) as client:
        await client.apply(CONFIG_MAP, "here", "a", {"data": {"k": "v"}}, field_manager="quire-operator")

    asked = api.asked[0]
    assert (asked["method"], asked["type"]) == ("PATCH", "application/apply-patch+yaml")
    assert asked["query"] == {"fieldManager": "quire-operator", "force": "true"}
    assert msgspec.json.decode(asked["body"]) == {"data": {"k": "v"}}


async def test_a_refusal_carries_status_reason_message_and_when_to_return(api) -> None:
    status = {
        "kind": "Status",
        "reason": "TooManyRequests",
        "message": "slow down",
        "details": {"retryAfterSeconds": 7},
    }
    api.lists = [web.json_response(status, status=429)]

    async with client_of(api.access) as client:
        with pytest.raises(KubeError) as caught:
            await client.get(CONFIG_MAP, "here", "a")

    error = caught.value
    assert (error.status, error.reason, error.message, error.retry_after_s) == (429, "TooManyRequests", "slow down", 7)


async def test_a_server_that_is_away_is_status_zero(api) -> None:
    access = KubeAccess(server="http://127.0.0.1:9", namespace="here")

    async with client_of(access) as client:
        with pytest.raises(KubeError) as caught:
            await client.get(CONFIG_MAP, "here", "a")

    assert (caught.value.status, caught.value.reason) == (0, "Unreachable")


async def test_an_answer_that_is_no_json_is_an_error_of_the_client(api) -> None:
    api.lists = [web.Response(text="<html>a proxy</html>"), web.Response(text="<html>", status=502)]

    async with client_of(api.access) as client:
        with pytest.raises(KubeError) as good:
            await client.get(CONFIG_MAP, "here", "a")
        with pytest.raises(KubeError) as bad:
            await client.get(CONFIG_MAP, "here", "a")

    assert (good.value.status, good.value.reason) == (0, "BadAnswer")
    assert (bad.value.status, bad.value.reason) == (502, "BadGateway")


async def test_watch_events_may_come_in_any_pieces(api) -> None:
    first = b'{"type":"ADDED","object":{"metadata":{"name":"\xc3\xa9"}}}\n'
    second = b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}\n'
    api.watches = [[first[:40], first[40:] + second[:3], second[3:]]]

    async with client_of(api.access) as client:
        events = [event async for event in client.watch(CONFIG_MAP, "here", "5")]

    assert events[0] == ("ADDED", {"metadata": {"name": "é"}})
    assert events[1] == ("BOOKMARK", {"metadata": {"resourceVersion": "9"}})
    assert api.asked[0]["query"]["resourceVersion"] == "5"


async def test_a_version_that_is_forgotten_is_410_in_whatever_form_it_is_told(api) -> None:
    api.watches = [
        410,
        [b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"old"}}\n'],
    ]

    async with client_of(api.access) as client:
        for _ in range(2):
            with pytest.raises(KubeError) as caught:
                _ = [event async for event in client.watch(CONFIG_MAP, "here", "5")]
            assert caught.value.status == 410


async def test_a_token_file_is_read_again_after_a_minute_and_after_a_refusal(api, tmp_path: Path) -> None:
    file, now_s = tmp_path / "token", [0.0]
    file.write_text("first\n")
    api.lists = [
        {"metadata": {}},
        {"metadata": {}},
        {"metadata": {}},
        web.json_response({}, status=401),
        {"metadata": {}},
    ]
    access = KubeAccess(server=api.access.server, namespace="here", token_file=file)

    async with KubeClient(access, user_agent="quire-test", clock=lambda: now_s[0]) as client:
        await client.get(CONFIG_MAP, "here", "a")
        file.write_text("second")
        await client.get(CONFIG_MAP, "here", "a")
        now_s[0] = 61.0
        await client.get(CONFIG_MAP, "here", "a")
        file.write_text("third")
        with pytest.raises(KubeError):
            await client.get(CONFIG_MAP, "here", "a")
        await client.get(CONFIG_MAP, "here", "a")

    tokens = [asked["authorization"] for asked in api.asked]
    assert tokens == ["Bearer first", "Bearer first", "Bearer second", "Bearer second", "Bearer third"]


async def test_requests_of_many_tasks_at_once_are_all_answered(api) -> None:
    api.lists = [{"metadata": {"name": "a"}}]

    async with client_of(api.access) as client:
        answers = await asyncio.gather(*(client.get(CONFIG_MAP, "here", "a") for _ in range(200)))

    assert len(answers) == 200


async def test_a_redirect_is_refused_since_credentials_are_for_one_server_only(api) -> None:
    there = web.Response(status=307, headers={"Location": f"{api.access.server}/elsewhere"})
    api.lists = [there]

    async with client_of(api.access) as client:
        with pytest.raises(KubeError) as caught:
            await client.get(CONFIG_MAP, "here", "a")

    assert caught.value.status == 307
    assert [asked["path"] for asked in api.asked] == ["/api/v1/namespaces/here/configmaps/a"]


@pytest.mark.parametrize("line", [b'{"type":"ADDED","object":[1]}', b'{"type":"ADDED","object":{"metadata":7}}', b"[]"])
async def test_a_watch_event_without_an_object_is_an_error_of_the_client(api, line: bytes) -> None:
    api.watches = [[line + b"\n"]]

    async with client_of(api.access) as client:
        with pytest.raises(KubeError) as caught:
            _ = [event async for event in client.watch(CONFIG_MAP, "here", "5")]

    assert caught.value.reason == "BadAnswer"
