"""The processor of a grammar: it begins after the reasoning, and goes back where drafts are rejected."""

import json

import pytest
import torch

from axk1.chat.session import TURN_ENDS
from axk1.serve.errors import Refusal
from axk1.serve.grammar import Grammars, call_grammar, choice_grammar, json_grammar, lark_grammar, regex_grammar
from axk1.serve.settings import Settings

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
PROMPT = [1, 2, 3]
LIMITS = Settings()


@pytest.fixture(scope="module")
def ends(tokenizer):
    return set(tokenizer.convert_tokens_to_ids(list(TURN_ENDS)))


@pytest.fixture(scope="module")
def grammars(tokenizer, ends):
    return Grammars(tokenizer, ends)


@pytest.fixture
def allowed(grammars, tokenizer):
    """What may follow a reply, by one processor through all calls."""
    made = {}

    def ask(reply, think=True, grammar=None):
        if not made:
            matcher = grammars.compile(grammar or json_grammar(SCHEMA, LIMITS))
            made["processor"] = grammars.processor(matcher, len(PROMPT), think)
        scores = made["processor"](torch.tensor([PROMPT + reply]), torch.zeros(1, len(tokenizer) + 8))
        return set((scores[0] == 0).nonzero()[:, 0].tolist())

    return ask


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_it_begins_after_the_reasoning_which_cannot_end_the_reply(allowed, tokenizer, ends):
    thought, answer = encode(tokenizer, "17 + 25 {"), encode(tokenizer, '</think>{"a": 12}')
    free = allowed(thought)
    assert not ends & free and len(free) > 6000
    assert {tokenizer.decode([id]).strip()[:1] for id in allowed(thought + answer[:1])} == {"{"}
    assert allowed(thought + answer) == ends


def test_it_goes_back_with_rejected_drafts(allowed, tokenizer, ends):
    close, answer = encode(tokenizer, "x</think>"), encode(tokenizer, '{"a": 12}')
    expected = [allowed(close + answer[:n]) for n in range(len(answer) + 1)]
    wrong = encode(tokenizer, '"b')
    for n in range(len(answer) + 1):
        for drafts in (wrong, [*sorted(ends)[:1], *wrong], encode(tokenizer, "</think>")):
            for ahead in range(len(drafts) + 1):
                allowed(close + answer[:n] + drafts[:ahead])
            assert allowed(close + answer[:n]) == expected[n]
    assert len(allowed(close[:1])) > 6000  # and back into the reasoning
    assert allowed(close + answer) == ends


def test_a_draft_after_the_end_can_still_be_chosen(allowed, tokenizer, ends):
    """It never becomes part of the reply, but scores without any finite one would break the step of all."""
    reply = encode(tokenizer, 'x</think>{"a": 12}')
    assert allowed(reply) == ends
    assert all(len(allowed([*reply, end])) > 6000 for end in ends)
    assert allowed(reply) == ends


def test_a_tag_that_is_spelled_ends_the_reasoning_too(allowed, tokenizer):
    spelled = [id for character in "</think" for id in encode(tokenizer, character)]
    over = {id for text, id in tokenizer.get_vocab().items() if text.startswith(">") and text != ">"}
    assert not over & allowed(spelled)  # such a token would begin the answer where no grammar sees it
    assert {tokenizer.decode([id]).strip()[:1] for id in allowed(spelled + encode(tokenizer, ">"))} == {"{"}


def test_without_thinking_it_begins_at_once(allowed, tokenizer):
    assert {tokenizer.decode([id]).strip()[:1] for id in allowed([], think=False)} == {"{"}


TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": {**SCHEMA, "$defs": {"x": {"type": "null"}}}}},
    {"type": "function", "function": {"name": "g"}},
]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "g", "arguments": {"z": [1]}}\n</tool_call>'


@pytest.mark.parametrize(
    ("options", "good", "bad"),
    [
        ({"parallel": True}, [CALL, OTHER, f"{CALL}\n{OTHER}"], ["text", '{"a": 1}', CALL.replace("1", '"1"')]),
        ({"parallel": False}, [CALL], [f"{CALL}\n{OTHER}"]),
        ({"parallel": True, "answer": SCHEMA}, [CALL, '{"a": 1}'], ["text"]),
        ({"parallel": True, "text": True}, [CALL, "text", f"so: {CALL} and {OTHER}."], [CALL.replace("1", '"1"')]),
    ],
)
def test_calls(grammars, tokenizer, options, good, bad):
    matcher = grammars.compile(call_grammar(TOOLS, tokenizer, LIMITS, **options))
    for text in good:
        copy = matcher.deep_copy()
        ids = encode(tokenizer, text)
        assert copy.try_consume_tokens(ids) == len(ids) and copy.is_accepting(), text
    for text in bad:
        copy = matcher.deep_copy()
        ids = encode(tokenizer, text)
        assert copy.try_consume_tokens(ids) < len(ids) or not copy.is_accepting(), text


def test_other_grammars(grammars, tokenizer):
    for grammar, text in (
        (regex_grammar("[0-9]{3}", LIMITS), "123"),
        (choice_grammar(["yes", 'no "really"'], LIMITS), 'no "really"'),
        (lark_grammar('start: "a" /b+/', LIMITS), "abbb"),
        (json_grammar(True, LIMITS), '{"x": {"y": null}}'),
    ):
        matcher = grammars.compile(grammar)
        assert matcher.consume_tokens(encode(tokenizer, text)) and matcher.is_accepting()


@pytest.mark.parametrize(
    "schema", [{"not": {}}, {"$ref": "http://x.example/y"}, {"type": "string", "pattern": "(?=a)"}]
)
def test_what_is_not_supported_is_refused_up_front(grammars, schema):
    with pytest.raises(Refusal, match="not supported"):
        grammars.compile(json_grammar(schema, LIMITS))


def test_schemas_of_all_kinds_are_followed(grammars, tokenizer):
    """Greedy choice among what is allowed, with scores of a random text: what comes out fits the schema."""
    jsonschema = pytest.importorskip("jsonschema")
    kinds = [
        {"enum": ["red", 7, None]},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
        {"type": "object", "properties": {"n": {"type": "number", "minimum": 3, "maximum": 9}}, "required": ["n"]},
        {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "integer", "maximum": 20, "minimum": -5}]},
        {"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "properties": {"k": {"const": 1}}, "required": ["k"],
                                              "additionalProperties": False}}},
        {"type": "string", "format": "date"},
    ]  # fmt: skip
    ends = set(tokenizer.convert_tokens_to_ids(list(TURN_ENDS)))
    for number, schema in enumerate(kinds):
        generator = torch.Generator().manual_seed(number)
        processor = grammars.processor(grammars.compile(json_grammar(schema, LIMITS)), 0, False)
        ids: list[int] = []
        while len(ids) < 200:
            scores = torch.rand(1, len(tokenizer), generator=generator)
            scores[0, sorted(ends)] += 1  # ends where it may
            ids.append(int(processor(torch.tensor([ids], dtype=torch.int64), scores).argmax()))
            if ids[-1] in ends:
                break
        jsonschema.validate(json.loads(tokenizer.decode(ids[:-1])), schema)
