"""OpenAI's package for Node against the server."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from client_server import Server

SCRIPT = Path(__file__).parent / "openai_node.mjs"


@pytest.fixture(scope="module")
def found(server: Server, node_modules: Path) -> Any:
    """What the script saw."""
    done = subprocess.run(
        ["node", str(SCRIPT), str(node_modules), server.v1], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_chats_and_completions_work_streamed_and_whole(found: Any) -> None:
    assert found["chat"]
    assert found["streamed"] == found["chat"]
    assert found["streamUsage"] == found["usage"] > 0
    assert found["completion"] in {"stop", "length"}


def test_tool_calls_have_the_arguments_that_the_schema_asks_for(found: Any) -> None:
    assert found["callName"] == "convert"
    for call in (found["call"], found["streamedCall"]):
        assert set(call) == {"value", "unit"}
        assert 0 <= call["value"] <= 99
        assert call["unit"] in {"m", "km"}


def test_answers_parse_into_a_zod_object(found: Any) -> None:
    assert 0 <= found["parsed"]["value"] <= 99999
    assert found["parsed"]["unit"] in {"m", "cm"}


def test_responses_work_streamed_and_whole(found: Any) -> None:
    assert found["response"] == found["chat"]
    assert found["responseStreamed"] == found["response"]
    assert found["events"][0] == "response.created"
    assert found["events"][-1] == "response.completed"


def test_an_unknown_model_is_the_packages_own_error(found: Any) -> None:
    assert found["error"] == {"status": 404, "code": "model_not_found", "name": "NotFoundError"}
