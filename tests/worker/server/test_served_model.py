"""What is tokenised beside the event loop, and what the loop does itself."""

from typing import Any

import pytest

from quire_contract.prompt_input import ChatInput, TextInput
from quire_worker.server.served_model import is_short

LONG = "x" * 5000


def chat(*messages: dict[str, Any], **fields: Any) -> ChatInput:
    return ChatInput(messages=[{"role": "user", "content": "hi"}, *messages], **fields)


@pytest.mark.parametrize(
    "source",
    [
        chat({"role": "user", "content": LONG}),
        chat({"role": "user", "content": "", "reasoning_content": LONG}),
        chat(
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": LONG}}}]}
        ),
        chat(template_kwargs={"note": [LONG]}),
        chat(template_kwargs={"numbers": [1] * 5000}),
        chat(tools=[{"function": {"description": LONG}}]),
        ChatInput(messages=[{"role": "user", "content": ""}] * 5000),
        TextInput(prompts=["hi", LONG]),
    ],
)
def test_whatever_is_long_in_a_prompt_leaves_the_event_loop_free(source: Any) -> None:
    assert not is_short(source)


@pytest.mark.parametrize("source", [chat(), TextInput(prompts=["hi"]), TextInput(prompts=[[1] * 5000])])
def test_short_prompts_and_token_ids_stay_on_the_event_loop(source: Any) -> None:
    assert is_short(source)


def test_deep_nesting_is_looked_through() -> None:
    value: Any = LONG
    for _ in range(1500):
        value = [value]

    assert not is_short(chat(template_kwargs={"a": value}))
