"""The official clients, unmodified."""

import json

import anthropic
import openai
import pytest
from pydantic import BaseModel
from serving import FAMILY, TOOLS, user


@pytest.fixture(scope="module")
def ours(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_openai_chat(ours):
    reply = ours.chat.completions.create(model="axk1", messages=user("hello"), reasoning_effort="low", logprobs=True)
    message = reply.choices[0].message
    assert message.content == f"Hello there! {FAMILY}" and message.reasoning_content == "Let me think."
    assert type(reply).model_validate(reply.model_dump(), strict=True)
    with ours.chat.completions.stream(model="axk1", messages=user("look twice"), tools=TOOLS) as stream:
        for _ in stream:
            pass
        calls = stream.get_final_completion().choices[0].message.tool_calls or []
    assert [call.function.name for call in calls] == ["weather", "clock"]
    assert json.loads(calls[0].function.arguments) == {"city": "서울", "days": [1, 2]}


def test_openai_parses_into_a_class(ours):
    class Answer(BaseModel):
        yes: bool

    reply = ours.chat.completions.parse(model="axk1", messages=user("hello"), response_format=Answer, max_tokens=100)
    assert isinstance(reply.choices[0].message.parsed, Answer)


def test_openai_completions_models_and_errors(ours):
    reply = ours.completions.create(model="axk1", prompt="hello", echo=True, logprobs=1, max_tokens=4)
    assert reply.choices[0].text.startswith("hello") and len(reply.choices[0].logprobs.tokens) == 5
    assert [model.id for model in ours.models.list()] == ["axk1"]
    with pytest.raises(openai.NotFoundError, match="is not served"):
        ours.chat.completions.create(model="gpt", messages=user("hello"))
    with pytest.raises(openai.BadRequestError, match="n is 99"):
        ours.chat.completions.create(model="axk1", messages=user("hello"), n=99)


def test_openai_responses(ours):
    flat = [{"type": "function", **tool["function"]} for tool in TOOLS]
    with ours.responses.stream(model="axk1", input="look twice", tools=flat, reasoning={"effort": "low"}) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    reply = ours.responses.create(model="axk1", input="hello")
    assert reply.output_text == f"Hello there! {FAMILY}"
    assert type(reply).model_validate(reply.model_dump(), strict=True)


def test_anthropic(claude):
    tools = [{"name": "weather", "input_schema": {"type": "object"}}]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    with claude.messages.stream(
        model="axk1", max_tokens=2000, messages=user("look twice"), tools=tools, thinking=thinking
    ) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_message()
    assert {"thinking", "text", "input_json"} <= kinds
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[2].input == {"city": "서울", "days": [1, 2]} and message.stop_reason == "tool_use"
    assert claude.messages.count_tokens(model="axk1", messages=user("hello")).input_tokens > 5
    with pytest.raises(anthropic.BadRequestError, match="image"):
        claude.messages.create(
            model="axk1", max_tokens=5, messages=[{"role": "user", "content": [{"type": "image", "source": {}}]}]
        )
