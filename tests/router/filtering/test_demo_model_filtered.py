"""A real worker with the demo model behind the router: what it says is filtered as it comes, in all four APIs."""

import json
import re
from collections.abc import Iterator

import msgspec
import pytest
from client_server import DEMO, Server, serve

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config
from quire_contract.router_settings import FilterEntry, RouterSettingsEntry

TEXT = "Once upon a time"
BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 40, "temperature": 0},
    "/v1/completions": {"prompt": TEXT, "max_tokens": 40, "temperature": 0},
    "/v1/responses": {"input": TEXT, "max_output_tokens": 40, "temperature": 0},
    "/v1/messages": {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 40, "temperature": 0},
}


@pytest.fixture(scope="module")
def worker() -> Iterator[Server]:
    with serve(DEMO, "--dtype", "float32", "--num-gpu-blocks-override", "256") as server:
        yield server


def text_of(path: str, raw: bytes) -> str:
    events = [json.loads(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: {")]
    if path.endswith("completions"):
        choices = [choice for event in events for choice in event["choices"]]
        return "".join(c["delta"].get("content") or "" if "delta" in c else c["text"] for c in choices)
    if path == "/v1/messages":
        return "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta")
    return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")


@pytest.mark.parametrize("path", list(BODIES))
async def test_what_a_model_says_is_filtered_and_otherwise_the_same(path, worker, start_router, until) -> None:
    entry = EndpointEntry(id="w", url=worker.base, models=["demo"])
    plain = RouterConfig(models=[ModelEntry(name="demo")], endpoints=[entry])
    router = await start_router(plain)
    await router.until_ready(1)
    body = {"model": "demo", "stream": True, **BODIES[path]}
    async with router.post(body, path) as response:
        said = text_of(path, await response.read())
    words = re.findall(r"[a-z]{3,}", said)
    word = words[len(words) // 2]
    seen = {}

    for action in ("redact", "block"):
        rule = FilterEntry(name=action, stage="output", action=action, words=[word], replacement="#")
        write_config(router.config_path, msgspec.structs.replace(plain, settings=RouterSettingsEntry(filters=[rule])))
        for _ in range(200):
            async with router.post(body, path) as response:
                seen[action] = text_of(path, await response.read())
            if seen[action] != said and (action == "redact" or seen[action] != seen["redact"]):
                break

    whole = re.compile(rf"\b{word}\b", re.IGNORECASE)
    assert seen["redact"] == whole.sub("#", said)
    assert seen["block"] == said[: whole.search(said).start()]
