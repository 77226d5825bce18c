"""How replies look on a terminal: words stay whole, line breaks and arithmetic survive Markdown."""

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from axk1.chat.parser import Delta
from axk1.cli.chat_view import TextView, as_markdown, block_end, show


def wrapped(text: str, width: int, cuts: list[int]) -> str:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, color_system=None, markup=False, emoji=False
    )
    view = TextView(console, None)
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    for start, end in itertools.pairwise(places):
        view.add(text[start:end])
    view.end()
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@given(
    words=st.lists(st.text(st.sampled_from("abcdeé,."), min_size=1, max_size=9), min_size=1),
    cuts=st.lists(st.integers(0, 500)),
)
def test_words_are_not_broken(words, cuts):
    text = " ".join(words)
    shown = wrapped(text, 20, cuts)
    assert all(len(line) <= 20 for line in shown.split("\n"))
    assert shown.split() == words


@given(text=st.text(st.sampled_from("ab 한글日本 \n"), max_size=80), cuts=st.lists(st.integers(0, 80)))
def test_nothing_is_lost_and_no_line_is_too_wide(text, cuts):
    shown = wrapped(text, 10, cuts)
    assert "".join(shown.split()) == "".join(text.split())
    assert all(cell_len(line) <= 10 for line in shown.split("\n"))


def test_a_pipe_gets_the_text_as_it_is():
    console = Console(file=io.StringIO(), width=10)
    view = TextView(console, None)
    view.add("a long line with  many words\n")
    view.end()
    assert console.file.getvalue() == "a long line with  many words\n"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("text", "end"),
    [("a\nb", None), ("a\n\nb", 1), ("\n\na", None), ("```\na\n\nb", None), ("```\na\n\nb\n```\n\nc", 12), ("", None)],
)
def test_where_a_block_ends(text, end):
    assert block_end(text) == end


def test_line_breaks_and_products_survive():
    assert as_markdown("1\n2*3 * 4\n```\n5*6\n```") == "1  \n2\\*3 \\* 4  \n```\n5*6\n```"


def test_an_answer_in_markdown():
    console = Console(file=io.StringIO(), force_terminal=True, width=40, color_system=None, markup=False)
    answer = "# Title\n\nTwo **bold** words\nand 2*3*4\n\n```python\nx = 1\n\ny = 2\n```\n\n- item\x1b[31m"
    show(console, [Delta("reasoning", "hm"), *(Delta("answer", letter) for letter in answer)], markdown=True)
    out = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "**" not in out and "```" not in out and "# Title" not in out and "\x1b[31m" not in out
    assert "Title" in out and "2*3*4" in out and "x = 1" in out and "• item" in out
    assert out.index("[reasoning]") < out.index("hm") < out.index("[answer]")
