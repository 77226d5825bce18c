"""Every field has one class, and the documentation's table is this one."""

import re
from pathlib import Path

import pytest
from serving import user

from axk1.serve import fields
from axk1.serve.routes import chat, completions, messages, responses
from axk1.serve.thinking import EFFORTS

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
BODIES = {
    chat.ROUTE: chat.ChatBody,
    completions.ROUTE: completions.CompletionBody,
    responses.ROUTE: responses.ResponsesBody,
    messages.ROUTE: messages.MessagesBody,
    messages.COUNT: messages.CountBody,
}


@pytest.mark.parametrize("route", BODIES)
def test_a_field_has_one_class_and_the_honoured_are_those_that_are_read(route):
    honoured = fields.HONOURED_FIELDS[route]
    assert set(honoured) == set(BODIES[route].model_fields)
    classes = [*honoured, *fields.INERT_FIELDS[route], *fields.REFUSED_FIELDS[route]]
    assert len(classes) == len(set(classes))


def test_the_documentation_has_the_same_table():
    text = DOCS.read_text(encoding="utf-8")
    for route in BODIES:
        section = text.split(f"### `{route}`\n", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]
        told = dict(re.findall(r"^\| (honoured|inert|refused) \| (.*) \|$", section, re.MULTILINE))
        for name, known in (
            ("honoured", fields.HONOURED_FIELDS[route]),
            ("inert", fields.INERT_FIELDS[route]),
            ("refused", fields.REFUSED_FIELDS[route]),
        ):
            assert set(re.findall(r"`([^`]+)`", told[name])) == set(known), (route, name)


def test_the_documentation_has_the_same_efforts():
    text = " ".join(DOCS.read_text(encoding="utf-8").split())
    limited = [f"{name} {budget:,}" for name, budget in EFFORTS.items() if budget is not None]
    free = [name for name, budget in EFFORTS.items() if budget is None]
    assert f"Efforts are budgets: {', '.join(limited)}, {' and '.join(free)} without limit." in text


def test_inert_fields_are_named_in_a_header(client):
    inert = {name: "x" for name in fields.INERT_FIELDS[chat.ROUTE]}
    plain = {"messages": user("hello"), "seed": 1}
    reply = client.post(chat.ROUTE, json={**plain, **inert, "unheard_of": 1, "store": None})
    expected = sorted({*inert, "unheard_of"} - {"store"})
    assert reply.status_code == 200 and reply.headers[fields.HEADER].split(", ") == expected
    assert fields.HEADER not in client.post(chat.ROUTE, json=plain).headers


@pytest.mark.parametrize("route", [chat.ROUTE, completions.ROUTE, responses.ROUTE, messages.ROUTE])
def test_refused_fields_are_named_in_the_error(client, route):
    hello = {"messages": user("hello"), "prompt": "hello", "input": "hello", "max_tokens": 5}
    body = {name: value for name, value in hello.items() if name in fields.HONOURED_FIELDS[route]}
    for name, rule in fields.REFUSED_FIELDS[route].items():
        reply = client.post(route, json={**body, name: "something"})
        assert reply.status_code == 400 and name in reply.json()["error"]["message"], name
        for neutral in rule.neutral:
            assert client.post(route, json={**body, name: neutral}).status_code == 200, (name, neutral)


def test_header_names_cannot_break_the_header(client):
    odd = {"messages": user("hello"), "a\r\nSet-Cookie: x": 1, "ü,": 1, "y" * 500: 1}
    reply = client.post(chat.ROUTE, json=odd)
    assert reply.status_code == 200 and "set-cookie" not in reply.headers
    for name in ("", " ", "\t", "a ", " a", "\u3000"):  # a value may neither begin nor end with a space
        for path, body in ((chat.ROUTE, {**odd, name: 1}), (responses.ROUTE, {"input": "hello", "include": [name]})):
            reply = client.post(path, json=body)
            assert reply.status_code == 200 and reply.headers[fields.HEADER]


def test_a_number_with_nothing_after_its_point_is_an_integer(client):
    """JSON has one kind of number."""
    body = {"messages": user("choose"), "n": 2.0, "max_tokens": 3.0, "seed": 1.0, "top_logprobs": 0.0}
    assert client.post(chat.ROUTE, json=body).status_code == 200
    assert client.post("/detokenize", json={"tokens": [7.0]}).status_code == 200
    assert client.post(chat.ROUTE, json={**body, "max_tokens": 2.5}).status_code == 400
    assert client.post(chat.ROUTE, json={**body, "max_tokens": True}).status_code == 400
    assert client.post(chat.ROUTE, json={**body, "max_tokens": "3"}).status_code == 400
