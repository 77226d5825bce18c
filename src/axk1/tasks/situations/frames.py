"""Situations without words: what is worked out, from which kinds of numbers."""

from __future__ import annotations

from typing import NamedTuple


class Frame(NamedTuple):
    """An expression in the letters of its numbers, and the kind of each (see `numbers.draw`)."""

    task: str
    expression: str
    kinds: str


def _frame(task: str, expression: str, kinds: str) -> Frame:
    return Frame(task, expression, kinds)


# The letters are a, b, c, d in the order of the kinds.
FRAMES = {
    # said in words
    "add": _frame("arithmetic", "a+b", "nn"),
    "add3": _frame("arithmetic", "a+b+c", "nnn"),
    "subtract": _frame("arithmetic", "a-b", "nn"),
    "multiply": _frame("arithmetic", "a*b", "ns"),
    "multiply2": _frame("arithmetic", "a*b", "tt"),
    "divide": _frame("arithmetic", "a/b", "ns"),
    "double": _frame("arithmetic", "a*2", "n"),
    "triple": _frame("arithmetic", "a*3", "n"),
    "half": _frame("arithmetic", "a/2", "n"),
    "percent": _frame("arithmetic", "a*b/100", "np"),
    "bigger": _frame("arithmetic", "a-b", "nn"),
    "sub_times": _frame("arithmetic", "(a-b)*c", "tts"),
    "add_times": _frame("arithmetic", "(a+b)*c", "tts"),
    "times_add": _frame("arithmetic", "a*b+c", "tst"),
    "times_sub": _frame("arithmetic", "a*b-c", "tst"),
    "average": _frame("arithmetic", "(a+b+c)/3", "ttt"),
    # things that are bought, counted, shared
    "total2": _frame("word", "a+b", "nn"),
    "total3": _frame("word", "a+b+c", "nnn"),
    "left": _frame("word", "a-b", "nn"),
    "left2": _frame("word", "a-b-c", "ntt"),
    "more_than": _frame("word", "a+b", "nn"),
    "less_than": _frame("word", "a-b", "nn"),
    "both_more": _frame("word", "a+(a+b)", "tt"),
    "before_loss": _frame("word", "b+a", "nn"),
    "before_gain": _frame("word", "b-a", "nn"),
    "out_in": _frame("word", "a-b+c", "ntt"),
    "in_out": _frame("word", "a+b-c", "ntt"),
    "price": _frame("word", "a*b", "ms"),
    "price_plus": _frame("word", "a*b+c", "smm"),
    "two_prices": _frame("word", "a*b+c*d", "smsm"),
    "change": _frame("word", "a-b", "mm"),
    "change_times": _frame("word", "a-b*c", "msm"),
    "discount": _frame("word", "a-b", "mm"),
    "coins": _frame("word", "a*b+c*d", "smsm"),
    "packs": _frame("word", "a*b", "ts"),
    "packs_plus": _frame("word", "a*b+c", "tst"),
    "packs_less": _frame("word", "a*b-c", "tst"),
    "seats_free": _frame("word", "a*b-c", "stn"),
    "bags": _frame("word", "a/b", "ns"),
    "share": _frame("word", "a/b", "ns"),
    "share_money": _frame("word", "a/b", "ms"),
    "share_rest": _frame("word", "(a-b)/c", "nts"),
    "share_sum": _frame("word", "(a+b)/c", "tts"),
    "unit_price": _frame("word", "a/b", "ms"),
    "times": _frame("word", "a*b", "ts"),
    "times_total": _frame("word", "a+a*b", "ts"),
    "per_day": _frame("word", "a*b", "ts"),
    "saving": _frame("word", "a*b-c", "msm"),
    "cut": _frame("word", "a-b*c", "nst"),
    "uses": _frame("word", "a-b*c", "nss"),
    "speed": _frame("word", "a*b", "ts"),
    "score": _frame("word", "a+b-c", "ttt"),
    "cooler": _frame("word", "a-b", "tt"),
    "warmer": _frame("word", "a+b", "tt"),
    "class": _frame("word", "a-b", "tt"),
    "rows": _frame("word", "a*b", "ts"),
    "rectangle": _frame("word", "a*b", "ts"),
    "border": _frame("word", "(a+b)*2", "tt"),
    # comparing and the calendar, where it is arithmetic
    "how_many_more": _frame("comparison", "a-b", "nn"),
    "how_much_dearer": _frame("comparison", "a-b", "mm"),
    "age_in": _frame("calendar", "b-a", "yy"),
    "age_later": _frame("calendar", "a+b", "tt"),
    "age_other": _frame("calendar", "a-b", "tt"),
    "days_between": _frame("calendar", "b-a", "tt"),
}
