"""The processor of a grammar: it begins after the reasoning, and goes back where drafts are rejected."""

import json
import re

import pytest
import torch
from serving import events, user

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


@pytest.mark.parametrize("text", ["<|im_end|></think><tool_call>", "a<|endoftext|>b", "</think>"])
def test_a_control_token_that_a_schema_asks_for_is_text(allowed, tokenizer, text):
    grammar, reply = json_grammar({"const": text}, LIMITS), []
    while not allowed(reply, think=False, grammar=grammar) & set(tokenizer.added_tokens_decoder):
        reply.append(min(allowed(reply, think=False)))
    assert json.loads(tokenizer.decode(reply, skip_special_tokens=True)) == text


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


ROUND = {"x": {"$ref": "#/$defs/x"}}


def list_of(least, items="#"):
    return {"type": "array", "items": {"$ref": items}, "minItems": least}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/x", "$defs": ROUND},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "object", "properties": {"enum": {"$ref": "#"}}, "required": ["enum"]},
        {"type": "object", "properties": {"a": list_of(1, "#/$defs/x")}, "required": ["a"], "$defs": ROUND},
        {"allOf": [{"type": "object"}, {"$ref": "#/$defs/x"}], "$defs": ROUND},
        list_of(1),
        {"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#"}], "minItems": 2},
    ],
)
def test_a_schema_whose_values_never_end_is_refused(schema):
    with pytest.raises(Refusal, match="Nothing fits the schema: by its references"):
        json_grammar(schema, LIMITS)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (list_of(0), "[[], [[]]]", "[1"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "null", "1"),
        ({"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["a"]},
         '{"a": {"a": null}}', '{"a": 1'),
        ({"properties": {"a": {"$ref": "#/$defs/x"}, "b": {}}, "additionalProperties": False, "$defs": ROUND,
          "type": "object"}, '{"b": 1}', '{"a'),
        ({"type": "array", "items": {"$ref": "#/$defs/x"}, "$defs": ROUND}, "[]", "[["),
        ({"type": "object", "properties": {"const": {"$ref": "#/$defs/수"}}, "$defs": {"수": {"type": "null"}},
          "required": ["const"]}, '{"const": null}', '{"const": 1'),
    ],
)  # fmt: skip
def test_what_ends_is_followed_and_never_what_does_not(grammars, tokenizer, schema, good, bad):
    """A reply cannot even begin a part that it could not finish."""
    matcher = grammars.compile(json_grammar(schema, LIMITS))
    copy, ids = matcher.deep_copy(), encode(tokenizer, good)
    assert copy.try_consume_tokens(ids) == len(ids) and copy.is_accepting()
    ids = [id for character in bad for id in encode(tokenizer, character)]
    assert matcher.try_consume_tokens(ids) < len(ids)


@pytest.mark.parametrize(
    "grammar",
    [
        lark_grammar("start: start", LIMITS),
        lark_grammar('start: a "b"\na: a', LIMITS),
        regex_grammar(r"a[^\x00-\x{10ffff}]", LIMITS),
        lark_grammar('start: ""', LIMITS),
        regex_grammar("", LIMITS),
        choice_grammar([""], LIMITS),
    ],
)
def test_a_grammar_that_leaves_nothing_to_write_is_refused(grammars, grammar):
    with pytest.raises(Refusal, match=r"Nothing fits|Only an empty text"):
        grammars.compile(grammar)


DEAD_END = 'start: "Hello there" (x | "!" )\nx: " you" y\ny: y'
"""After "Hello there you" nothing can follow, and llguidance sees it only there."""


def test_a_reply_that_comes_to_a_dead_end_is_told_from_one_that_is_whole(grammars, tokenizer, ends):
    """Drafts may lead there; after them the grammar still follows the other way."""
    processor = grammars.processor(grammars.compile(lark_grammar(DEAD_END, LIMITS)), len(PROMPT), False)
    hello, dead, whole = (encode(tokenizer, text) for text in ("Hello there", " you", "!"))

    def allowed(reply):
        scores = processor(torch.tensor([PROMPT + reply]), torch.zeros(1, len(tokenizer)))
        return set((scores[0] == 0).nonzero()[:, 0].tolist())

    first = allowed(hello)
    assert allowed(hello + dead) == ends and len(first) < 20
    with pytest.raises(ValueError, match="nothing fits its schema or grammar"):
        processor.check(len(hello + dead) + 1)
    allowed([*hello, *dead, min(ends), 5])
    assert allowed(hello) == first
    assert allowed(hello + whole) == ends
    processor.check(len(hello + whole) + 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_end_is_an_error_for_the_client_and_never_a_success(client, stream):
    def errors():
        return sum(map(float, re.findall(r'request_success_total{.*"error".*} (\S+)', client.get("/metrics").text)))

    before = errors()
    for path, body in (("completions", {"prompt": "hi"}), ("chat/completions", {"messages": user("hi")})):
        body |= {"structured_outputs": {"grammar": DEAD_END.replace('| "!"', "")}, "stream": stream, "max_tokens": 99}
        reply = client.post(f"/v1/{path}", json=body)
        error = events(reply.text)[-1]["error"] if stream else reply.json()["error"]
        assert reply.status_code == (200 if stream else 400) and "nothing fits its schema" in error["message"]
        assert '"stop"' not in reply.text
    assert errors() == before + 2


def test_a_budget_too_small_for_the_schema_is_told(client):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    for more in ({"max_tokens": 1}, {"max_tokens": 4, "thinking_budget": 100}):
        body = {"messages": user("ponder"), "response_format": form, **more}
        (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
        assert choice["finish_reason"] == "length"


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
