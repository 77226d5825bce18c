"""Chat templates are rendered as transformers renders them, within limits that no template can pass."""

import os
import threading

import pytest
from scripted import make_tokenizer

from axk1.tokenizer import render as rendering
from axk1.tokenizer.render import render
from axk1.tokenizer.template_worker import CHARACTERS

TOKENIZER = make_tokenizer()
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": [1, 2.5, None, "더"]}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}, "description": "더하기"}}
MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": 'a "quoted" <b>\n더하기\u2028'},
    {"role": "assistant", "content": "4", "reasoning_content": "r", "tool_calls": [CALL]},
    {"role": "tool", "content": "5"},
]
FEATURES = """
{%- generation %}
    {%- for m in messages if m.role != "system" %}
        {%- if loop.index > 2 %}{% break %}{% endif %}
        {%- if loop.first %}{% continue %}{% endif %}
[{{ m.tool_calls | tojson(indent=2) if m.tool_calls else m.content }}]
    {%- endfor %}
{% endgeneration -%}
{% set n = namespace(x=bos_token) %}{{ n.x }}{{ strftime_now("%%") }}{{ tools | tojson }}{{ documents is none }}
"""


@pytest.fixture
def quick(monkeypatch):
    """Limits of time that a test can wait for, in a process of its own."""
    process = rendering._Process(seconds=0.2)
    monkeypatch.setattr(rendering, "_process", process)
    yield process
    process.stop()


def rendered(monkeypatch, template: str) -> str:
    monkeypatch.setattr(TOKENIZER, "chat_template", template)
    return render(TOKENIZER, MESSAGES)


@pytest.mark.parametrize("template", [TOKENIZER.chat_template, FEATURES])
@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("think", [True, False])
def test_it_is_what_transformers_renders(monkeypatch, template, tools, think):
    monkeypatch.setattr(TOKENIZER, "chat_template", template)
    how = {"tools": tools, "add_generation_prompt": True, "enable_thinking": think}
    assert render(TOKENIZER, MESSAGES, **how) == TOKENIZER.apply_chat_template(MESSAGES, tokenize=False, **how)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 0.2 seconds"),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}", "0.2 seconds"),
        ("{% set x = 10**(10**8) %}{{ x % 7 }}", "0.2 seconds"),  # one operation, which no thread could stop
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% for i in range(999) %}{{ 'x' * 100000 }}{% endfor %}", f"more than {CHARACTERS:,} characters"),
        ("{{ 'x' * 10**11 }}", "1024 MB of memory"),
        ("{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "more than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ raise_exception('no ' * 10**6) }}", "no no"),
        ("{{ lipsum() }}", "Too many open files"),  # Jinja reads its words from a file
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% if %}", "Expected an expression"),
        ("{{ (" + "(" * 10**5, "recursion"),
    ],
    ids=range(13),
)
def test_a_template_without_end_is_one_sentence(monkeypatch, quick, template, reason):
    with pytest.raises(ValueError, match=r"The chat template (refuses|cannot)") as error:
        rendered(monkeypatch, template)
    assert reason in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 2500
    assert rendered(monkeypatch, "{{ messages[0].content }}") == "Be short.", "the next one is rendered"


def test_half_a_character_is_replaced(monkeypatch):
    assert rendered(monkeypatch, "a{{ '\\ud800' }}b") == "a?b"


def test_threads_and_forks_get_their_own_answers(monkeypatch):
    texts = [f"message {i}" for i in range(24)]
    found = {}

    def ask(text: str) -> None:
        for _ in range(20):
            found[text] = render(TOKENIZER, [{"role": "user", "content": text}])

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    if not (child := os.fork()):
        os._exit(0 if "message" in render(TOKENIZER, [{"role": "user", "content": "a message"}]) else 1)
    for thread in threads:
        thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert all(text in found[text] and len(found[text]) < 120 for text in texts)


def test_an_interrupted_question_leaves_no_answer_for_the_next(monkeypatch, quick):
    assert "Be short." in rendered(monkeypatch, "{{ messages[0].content }}")
    running = quick._running

    class Interrupted:
        def __init__(self, stream):
            self.stream = stream

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def readline(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(running, "stdout", Interrupted(running.stdout))
    with pytest.raises(KeyboardInterrupt):
        rendered(monkeypatch, "old")
    assert rendered(monkeypatch, "new") == "new" and quick._running is not running


def test_a_process_that_somebody_killed_is_started_again(monkeypatch, quick):
    assert rendered(monkeypatch, "a") == "a"
    quick._running.kill()
    quick._running.wait()
    assert rendered(monkeypatch, "b") == "b"
