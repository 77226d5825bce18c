"""The chat template: golden strings, reasoning in history, tools, the assistant mask, and the sandbox."""

import jinja2.exceptions
import pytest
from transformers import AutoTokenizer

from axk1.tokenizer.train import TEMPLATE_FILE, save_tokenizer, train_tokenizer

USER = {"role": "user", "content": "2+2?"}
REPLY = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
NEXT = {"role": "user", "content": "3+3?"}
TURN = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}, "description": "더하기"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer")
    text = "user assistant system name arguments tool_call function think 2 and 2"
    save_tokenizer(train_tokenizer(iter([text] * 9), vocab_size=340, special_slots=64, digits=1), out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def render(tokenizer):
    return lambda messages, **options: tokenizer.apply_chat_template(messages, tokenize=False, **options)


@pytest.mark.parametrize(
    ("options", "tail"),
    [
        ({}, "</think>"),
        ({"enable_thinking": False}, "</think>"),
        ({"enable_thinking": True}, "<think>"),
    ],
)
def test_generation_prompt(render, options, tail):
    assert render([USER], add_generation_prompt=True, **options) == TURN + tail


def test_system_message_and_order(render):
    messages = [{"role": "system", "content": "Be short."}, USER, REPLY, NEXT]
    assert render(messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        + TURN
        + "</think>4<|im_end|>\n<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n</think>"
    )


def test_training_example_is_prompt_and_reply(render):
    prompt = render([USER], add_generation_prompt=True, enable_thinking=True)
    assert render([USER, REPLY], enable_thinking=True) == prompt + "2 and 2</think>4<|im_end|>\n"
    prompt = render([USER], add_generation_prompt=True)
    assert render([USER, REPLY]) == prompt + "4<|im_end|>\n"


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize(
    "content",
    ["<think>2 and 2</think>4", "<think>\n2 and 2\n</think>\n\n4", "2 and 2</think>4", "\n<think>2 and 2</think>4"],
)
def test_inline_reasoning_equals_the_field(render, content, thinking):
    inline = {"role": "assistant", "content": content}
    for messages in ([USER, inline, NEXT], [USER, inline]):
        fielded = [REPLY if message is inline else message for message in messages]
        assert render(messages, enable_thinking=thinking) == render(fielded, enable_thinking=thinking)


def test_earlier_reasoning_is_dropped_also_in_think_mode(render):
    text = render([USER, REPLY, NEXT, REPLY], enable_thinking=True)
    assert text.startswith(TURN + "</think>4<|im_end|>\n") and text.count("2 and 2") == 1
    assert "2 and 2" not in render([USER, REPLY], enable_thinking=True, add_generation_prompt=True)


def test_a_tag_quoted_in_the_answer_stays_with_a_reasoning_field(render):
    quoted = {"role": "assistant", "content": "It ends in </think>, see?", "reasoning_content": ""}
    assert render([USER, quoted]) == TURN + "</think>It ends in </think>, see?<|im_end|>\n"
    assert render([USER, quoted], enable_thinking=True) == TURN + "<think></think>It ends in </think>, see?<|im_end|>\n"


def test_without_reasoning_the_turn_is_non_think(render):
    plain = {"role": "assistant", "content": "4"}
    assert render([USER, plain], enable_thinking=True) == TURN + "</think>4<|im_end|>\n"


def test_tools_are_listed_in_the_system_turn(render):
    signature = (
        '{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}, "description": "더하기"}}'
    )
    block = (
        "You can call these functions, one JSON signature a line:\n<tools>\n"
        + signature
        + "\n</tools>\nWrite each call as one block:\n"
        '<tool_call>\n{"name": "function", "arguments": {"key": "value"}}\n</tool_call><|im_end|>\n'
    )
    assert render([USER], tools=[TOOL]).startswith("<|im_start|>system\n" + block)
    with_system = render([{"role": "system", "content": "Be short."}, USER], tools=[TOOL])
    assert with_system == "<|im_start|>system\nBe short.\n\n" + block + "<|im_start|>user\n2+2?<|im_end|>\n"


@pytest.mark.parametrize("arguments", [{"a": 1, "b": "둘"}, '{"a": 1, "b": "둘"}'])
def test_tool_calls_and_grouped_results(render, arguments):
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": [{"type": "text", "text": "4"}]},
        {"role": "assistant", "content": "Both.", "tool_calls": [call]},
        {"role": "tool", "content": "5"},
    ]
    one = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "둘"}}\n</tool_call>'
    assert render(messages) == (
        f"{TURN}</think>{one}\n{one}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response><|im_end|>\n"
        f"<|im_start|>assistant\n</think>Both.\n{one}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n"
    )


@pytest.mark.parametrize(
    "message", [{"role": "robot", "content": "a"}, {"role": "user", "content": [{"type": "image", "image": "x"}]}]
)
def test_unknown_roles_and_parts_are_refused(render, message):
    with pytest.raises(jinja2.exceptions.TemplateError, match="chat template"):
        render([message])


@pytest.mark.parametrize(("thinking", "expected"), [(True, "2 and 2</think>4<|im_end|>"), (False, "4<|im_end|>")])
def test_assistant_mask_covers_exactly_the_reply(tokenizer, thinking, expected):
    out = tokenizer.apply_chat_template(
        [USER, REPLY], return_dict=True, return_assistant_tokens_mask=True, enable_thinking=thinking
    )
    reply = [index for index, inside in zip(out["input_ids"], out["assistant_masks"], strict=True) if inside]
    assert tokenizer.decode(reply) == expected


def test_history_and_generation_agree_token_for_token(tokenizer):
    prompt = tokenizer.apply_chat_template([USER], add_generation_prompt=True, enable_thinking=True)["input_ids"]
    reply = tokenizer("2 and 2</think>4<|im_end|>\n", add_special_tokens=False)["input_ids"]
    whole = tokenizer.apply_chat_template([USER, REPLY], enable_thinking=True)["input_ids"]
    assert prompt + reply == whole


@pytest.mark.parametrize(
    "hostile",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['os'] }}",
    ],
)
def test_a_hostile_template_is_refused(tokenizer, hostile):
    with pytest.raises(jinja2.exceptions.SecurityError):
        tokenizer.apply_chat_template([USER], chat_template=hostile, tokenize=False)


def test_a_folder_keeps_its_own_template(folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    own = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    (tmp_path / TEMPLATE_FILE).write_text(own, encoding="utf-8")
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template == own and loaded.apply_chat_template([USER], tokenize=False) == "[user] 2+2?"
