"""From token ids to a reply: characters split over tokens, stop strings, counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import make_tokenizer

from axk1.chat.parser import parse
from axk1.chat.reply import Reply, ReplyBuilder, StopStrings

TOKENIZER = make_tokenizer()
IM_END, CLOSE = 256 + 13, 256 + 15


def build(ids: list[int], think: bool, **options) -> tuple[Reply, str]:
    builder = ReplyBuilder(TOKENIZER, think, prompt_tokens=5, stop_ids={IM_END}, **options)
    streamed = ""
    for token in ids:
        streamed += "".join(delta.text for delta in builder.push(token))
        if builder.finish_reason:
            break
    streamed += "".join(delta.text for delta in builder.finish("length"))
    return builder.reply(), streamed


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_think_reply_and_its_counts():
    reply, streamed = build([*ids_of("abc</think>한 é"), IM_END], think=True)
    assert (reply.reasoning, reply.answer, reply.finish_reason, reply.closed) == ("abc", "한 é", "stop", True)
    assert (reply.prompt_tokens, reply.reasoning_tokens, reply.answer_tokens) == (5, 3, 6)
    assert streamed == "abc한 é"


def test_reply_that_ends_inside_the_reasoning_says_so():
    reply, _ = build(ids_of("abc"), think=True)
    assert (reply.reasoning, reply.answer, reply.closed, reply.finish_reason) == ("abc", "", False, "length")
    assert (reply.reasoning_tokens, reply.answer_tokens) == (3, 0)


def test_character_arrives_whole_or_as_replacement():
    builder = ReplyBuilder(TOKENIZER, False, 1, {IM_END})
    first, second, third = ids_of("한")
    assert builder.push(first) == builder.push(second) == []
    assert [delta.text for delta in builder.push(third)] == ["한"]
    assert build(ids_of("a한")[:-1], think=False)[0].answer == "a\ufffd"


def test_text_before_the_end_is_refused():
    with pytest.raises(RuntimeError, match="not ended"):
        ReplyBuilder(TOKENIZER, False, 1, {IM_END}).reply()


def test_stop_string_cuts_the_answer_and_not_the_reasoning():
    reply, streamed = build(ids_of("a END b</think>x y EN END z"), think=True, stop=["END"])
    assert (reply.reasoning, reply.answer, reply.finish_reason) == ("a END b", "x y EN ", "stop")
    assert streamed == "a END bx y EN "
    assert build(ids_of("x EN"), think=False, stop=["END"])[0].answer == "x EN"  # held back, then given out


def test_tool_calls_are_taken_out_only_with_tools():
    text = 'Look.\n<tool_call>{"name": "now"}</tool_call>'
    reply, _ = build(ids_of(text), think=False, tools=True)
    assert (reply.answer, reply.tool_calls[0].name) == ("Look.", "now")
    assert reply.message()["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}
    assert build(ids_of(text), think=False)[0].answer == text


def test_quoted_tag_survives_the_next_prompt():
    reply, _ = build(ids_of("a</think>Say </think> here."), think=True)
    history = [{"role": "user", "content": "q"}, reply.message(), {"role": "user", "content": "r"}]
    prompt = TOKENIZER.apply_chat_template(history, add_generation_prompt=True, tokenize=False)
    assert "<|im_start|>assistant\n</think>Say </think> here.<|im_end|>" in prompt


@given(ids=st.lists(st.one_of(st.integers(0, 255), st.just(CLOSE), st.sampled_from(list(b"</think>"))), max_size=40))
def test_any_tokens_parse_as_their_text(ids):
    text = str(TOKENIZER.decode(ids, skip_special_tokens=False))
    for think in (True, False):
        reply, streamed = build(ids, think)
        assert (reply.reasoning, reply.answer, reply.closed) == parse(text, think)
        assert streamed == reply.reasoning + reply.answer


@given(
    text=st.text("abcd", max_size=20), stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), data=st.data()
)
def test_stop_strings_do_not_depend_on_the_chunks(text, stop, data):
    def run(chunks: list[str]) -> tuple[str, bool]:
        cutter, out = StopStrings(stop), ""
        for chunk in chunks:
            out += cutter.feed(chunk)
            if cutter.found:
                return out, True
        return out + cutter.finish(), False

    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    out, found = run(chunks)
    assert (out, found) == run(list(text))
    assert found == any(string in text for string in stop)
    assert not any(string in out for string in stop)


def test_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="stop string"):
        StopStrings([""])
