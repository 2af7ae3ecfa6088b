"""LangChain's ChatOpenAI against the server."""

from collections.abc import AsyncIterator
from typing import Literal

import openai
import pytest
from client_server import Server
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr

QUESTION = "Convert 5 km to m."


class Answer(BaseModel):
    """An amount of something."""

    value: int = Field(ge=0, le=99999)
    unit: Literal["m", "cm"]


@tool
def convert(value: Literal[1, 2, 5], unit: Literal["km", "m"]) -> str:
    """Converts an amount."""
    return f"{value} {unit}"


@pytest.fixture
async def http() -> AsyncIterator[openai.DefaultAsyncHttpxClient]:
    """LangChain leaves the connections of a client of its own open."""
    async with openai.DefaultAsyncHttpxClient() as made:
        yield made


@pytest.fixture
def chat(server: Server, http: openai.DefaultAsyncHttpxClient) -> ChatOpenAI:
    return ChatOpenAI(
        http_async_client=http,
        model="demo",
        base_url=server.v1,
        api_key=SecretStr("none"),
        temperature=0,
        max_retries=0,
        max_completion_tokens=80,
    )


async def test_invoke_stream_and_batch_agree(chat: ChatOpenAI) -> None:
    whole = await chat.ainvoke([SystemMessage("Be brief."), HumanMessage(QUESTION)])
    streamed = "".join(
        [str(chunk.content) async for chunk in chat.astream([SystemMessage("Be brief."), HumanMessage(QUESTION)])]
    )
    several = await chat.abatch([[SystemMessage("Be brief."), HumanMessage(QUESTION)]] * 3)

    assert whole.content
    assert streamed == whole.content
    assert [answer.content for answer in several] == [whole.content] * 3
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0


async def test_structured_output_is_a_pydantic_object(chat: ChatOpenAI) -> None:
    answer = await chat.with_structured_output(Answer).ainvoke(QUESTION)

    assert isinstance(answer, Answer)


async def test_structured_output_by_a_tool_call_is_a_pydantic_object(chat: ChatOpenAI) -> None:
    answer = await chat.with_structured_output(Answer, method="function_calling").ainvoke(QUESTION)

    assert isinstance(answer, Answer)


async def test_a_tool_is_called_and_its_result_goes_back(chat: ChatOpenAI) -> None:
    called = await chat.bind_tools([convert], tool_choice="required", parallel_tool_calls=False).ainvoke(QUESTION)
    (call,) = called.tool_calls
    result = await convert.ainvoke(call["args"])
    answer = await chat.ainvoke([HumanMessage(QUESTION), called, ToolMessage(result, tool_call_id=call["id"])])

    assert call["name"] == "convert"
    assert isinstance(answer.content, str)


async def test_streamed_tool_calls_add_up(chat: ChatOpenAI) -> None:
    bound = chat.bind_tools([convert], tool_choice="convert")
    total = None
    async for chunk in bound.astream(QUESTION):
        total = chunk if total is None else total + chunk

    assert total is not None
    assert [call["name"] for call in total.tool_calls] == ["convert"]  # type: ignore[attr-defined]


async def test_the_responses_api_says_what_the_chat_says(
    server: Server, chat: ChatOpenAI, http: openai.DefaultAsyncHttpxClient
) -> None:
    by_responses = ChatOpenAI(
        http_async_client=http,
        model="demo",
        base_url=server.v1,
        api_key=SecretStr("none"),
        temperature=0,
        max_retries=0,
        use_responses_api=True,
    )

    answer, said = await by_responses.ainvoke(QUESTION), await chat.ainvoke(QUESTION)

    assert answer.text == said.content
