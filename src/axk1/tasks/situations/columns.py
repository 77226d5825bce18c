"""Reasoning in columns: an expression, and each of its operations digit by digit with carries.

Every step needs one column of two digits and a carry, and writes beside it what is known of the result so far:
`47+85: 7+5=12;2 4+8+1=13;132 =132`. How long that is says which column comes next, so nothing is counted in silence.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\d+|[-+*/()]")
LARGEST_FACT = 12  # divisors up to here are looked up in one step, larger ones by their multiples


def value(left: int, operator: str, right: int) -> int:
    """The value of one operation, of + - * /; / must leave no remainder."""
    return {"+": left + right, "-": left - right, "*": left * right, "/": left // max(right, 1)}[operator]


def operation(left: int, operator: str, right: int) -> str:
    """Sentences that work out `left operator right`, the last ending in `=value.`

    Raises:
        ValueError: a number below zero; only a result may be.
    """
    if left < 0 or right < 0:
        raise ValueError(f"{left}{operator}{right}: columns take no number below zero")
    if operator == "-" and left < right:
        return f"{operation(right, '-', left)} {left}-{right}=-{right - left}."
    return {"+": _sum, "-": _difference, "*": _product, "/": _quotient}[operator](left, right)


def _digits(number: int) -> list[int]:
    return [int(digit) for digit in reversed(str(number))]


def _sentence(head: str, steps: list[str], result: int) -> str:
    return f"{head}: {' '.join(steps)} ={result}." if len(steps) > 1 else f"{head}={result}."


def _columns(left: int, right: int) -> list[tuple[int, int]]:
    a, b = _digits(left), _digits(right)
    length = max(len(a), len(b))
    return list(zip(a + [0] * (length - len(a)), b + [0] * (length - len(b)), strict=True))


def _sum(left: int, right: int) -> str:
    steps, carry, done, columns = [], 0, "", _columns(left, right)
    for place, (a, b) in enumerate(columns, 1):
        column = a + b + carry
        done = (str(column) if place == len(columns) else str(column % 10)) + done
        steps.append(f"{a}+{b}{'+1' if carry else ''}={column};{done}")
        carry = column // 10
    return _sentence(f"{left}+{right}", steps, left + right)


def _difference(left: int, right: int) -> str:
    steps, borrowed, done = [], 0, ""
    for a, b in _columns(left, right):
        borrow = int(a - b - borrowed < 0)
        column = a + 10 * borrow - b - borrowed
        done = str(column) + done
        steps.append(f"{a + 10 * borrow}-{b}{'-1' if borrowed else ''}={column};{done}")
        borrowed = borrow
    return _sentence(f"{left}-{right}", steps, left - right)


def _product(left: int, right: int) -> str:
    """Partial products of the factor with fewer digits other than zero, then their sum."""
    if _weight(left) < _weight(right):
        left, right = right, left
    parts = [digit * 10**place for place, digit in enumerate(_digits(right)) if digit]
    if len(parts) < 2:
        return _partial(left, right)
    sentences, total = [f"{left}*{right}."], 0
    for part in parts:
        sentences.append(_partial(left, part))
        if total:
            sentences.append(_sum(total, left * part))
        total += left * part
    return " ".join(sentences)


def _weight(number: int) -> int:
    return len(str(number).rstrip("0"))


def _partial(left: int, right: int) -> str:
    """`right` is one digit with zeros after it."""
    digit, steps, carry, done = int(str(right)[0]), [], 0, ""
    if digit == 1 or not left or not right:
        return f"{left}*{right}={left * right}."
    digits = _digits(left)
    for place, a in enumerate(digits, 1):
        column = a * digit + carry
        done = (str(column) if place == len(digits) else str(column % 10)) + done
        steps.append(f"{a}*{digit}{f'+{carry}' if carry else ''}={column};{done}")
        carry = column // 10
    return _sentence(f"{left}*{right}", steps, left * right)


def _quotient(left: int, right: int) -> str:
    """Long division, from the left; a zero at the end of both is left out first."""
    head = f"{left}/{right}"
    while left % 10 == 0 and right % 10 == 0:
        left, right = left // 10, right // 10
        head += f"={left}/{right}"
    if right == 1:
        return f"{head}={left}."
    steps, rest, done = [], 0, ""
    for digit in map(int, str(left)):
        rest = 10 * rest + digit
        if not done and rest < right:
            continue
        times = rest // right
        done += str(times)
        steps.append(f"{_multiples(rest, right)}{rest}/{right}={times}r{rest % right};{done}")
        rest %= right
    return _sentence(head, steps, left // right) if len(str(left)) > 1 else f"{head}={left // right}."


def _multiples(rest: int, divisor: int) -> str:
    """Multiples of a divisor that is too large to know, up to the one that does not fit any more."""
    if divisor <= LARGEST_FACT:
        return ""
    return ",".join(str(divisor * k) for k in range(1, rest // divisor + 2)) + " "


def solve(expression: str) -> tuple[str, int]:
    """Reasoning and value of an expression such as (45-12)*2+7: the whole of it, then one operation after the other.

    Products and quotients go before sums and differences, from the left, the first inner brackets first.
    """
    tokens = _TOKEN.findall(expression)
    sentences = []
    if len(tokens) > 3:
        sentences.append(f"{expression}.")
    while len(tokens) > 1:
        at = _next(tokens)
        left, operator, right = int(tokens[at - 1]), tokens[at], int(tokens[at + 1])
        sentences.append(operation(left, operator, right))
        enclosed = at >= 2 and tokens[at - 2] == "(" and tokens[at + 2] == ")"
        tokens[at - 1 - enclosed : at + 2 + enclosed] = [str(value(left, operator, right))]
        if len(tokens) > 3:
            sentences.append("".join(tokens) + ".")
    return " ".join(sentences), int(tokens[0])


def _next(tokens: list[str]) -> int:
    """Index of the operator that is worked out first."""
    close = tokens.index(")") if ")" in tokens else len(tokens)
    start = max((i for i in range(close) if tokens[i] == "("), default=-1) + 1
    return next((i for i in range(start, close) if tokens[i] in "*/"), start + 1)
