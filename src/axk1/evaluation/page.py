"""Results as one HTML file that needs nothing else: charts as SVG, tables, no scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from axk1.evaluation.benchmarks import MODELS, SOURCE, benchmark, published
from axk1.evaluation.intervals import Share
from axk1.evaluation.task_results import MODES, TaskResult
from axk1.svg import COLOURS, GRID, document, line, text

WIDTH, LEFT, RIGHT, ROW, TOP = 900, 240, 60, 20, 40
BARS = {True: COLOURS[0], False: COLOURS[1]}
STYLE = """
body { font-family: sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #111; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .6rem; text-align: right }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
caption { text-align: left; padding: .3rem 0 }
svg { width: 100%; height: auto }
"""


def page(title: str, results: Sequence[TaskResult], settings: Sequence[str] = ()) -> str:
    """The report: scores and lengths by task and mode, published scores beside those of benchmarks.

    Args:
        title: the model's name.
        results: at least one.
        settings: sentences on how replies were made.
    """
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}: evaluation</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}: evaluation</h1>",
        *(f"<p>{escape(sentence)}</p>" for sentence in settings),
        "<h2>Scores</h2><p>Lines are 95% intervals (Wilson) over problems; repeats of a problem are no more problems. "
        f"Diamonds are published scores of {MODELS[0]}.</p>",
        score_chart(results),
        score_table(results),
        "<h2>Lengths</h2><p>Mean tokens of a reply, reasoning and answer together.</p>",
        length_chart(results),
        *_comparison(results),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def score_chart(results: Sequence[TaskResult]) -> str:
    """A bar for each task's main metric in each mode, with its interval and the published score."""

    def draw(result: TaskResult, x: Callable[[float], float], y: float) -> list[str]:
        share = result.scores[result.main]
        value, (low, high) = share["share"] or 0.0, share["interval"] or (0.0, 0.0)
        drawn = [line([(x(0), y), (x(value), y)], BARS[result.think], 10), line([(x(low), y), (x(high), y)], "#111")]
        drawn += [line([(x(end), y - 4), (x(end), y + 4)], "#111") for end in (low, high)]
        if MODELS[0] in (scores := published(result.task, result.think)):
            drawn.append(_diamond(x(scores[MODELS[0]] / 100), y))
        return [*drawn, text(x(max(high, value)) + 8, y + 4, f"{value:.1%}")]

    return _bars("Scores by task and mode", results, [0, 0.25, 0.5, 0.75, 1], "{:.0%}", draw)


def length_chart(results: Sequence[TaskResult]) -> str:
    """A bar for each task's mean length in each mode."""
    longest = max(result.mean_tokens for result in results) or 1.0

    def draw(result: TaskResult, x: Callable[[float], float], y: float) -> list[str]:
        end = x(result.mean_tokens)
        return [line([(x(0), y), (end, y)], BARS[result.think], 10), text(end + 8, y + 4, f"{result.mean_tokens:,.0f}")]

    return _bars("Mean tokens of a reply", results, [longest * part / 4 for part in range(5)], "{:,.0f}", draw)


def score_table(results: Sequence[TaskResult]) -> str:
    """All metrics, with intervals, counts, lengths and obedience."""
    head = (
        "Task",
        "Mode",
        "Metric",
        "Score",
        "95% interval",
        "Problems",
        "Replies",
        "Tokens",
        "Longest",
        "Mode obeyed",
    )
    rows = [
        (
            *(result.task, result.mode, metric, _percent(share), _interval(share), f"{result.problems:,}"),
            *(f"{result.replies:,}", f"{result.mean_tokens:,.1f}", f"{result.longest_tokens:,}"),
            _percent(result.mode_obeyed),
        )
        for result in results
        for metric, share in result.scores.items()
    ]
    return _table("All metrics", head, rows)


def _comparison(results: Sequence[TaskResult]) -> list[str]:
    """Published scores beside ours; nothing where none of the tasks has any."""
    rows = []
    for result in results:
        scores = published(result.task, result.think)
        if scores and (found := benchmark(result.task)) is not None:
            ours = result.scores[result.main]
            beside = [f"{scores[name]:.1f}" for name in MODELS]
            rows.append((found.name, result.mode, f"{_percent(ours)} ({_interval(ours)})", *beside, found.note))
    if not rows:
        return []
    return [
        "<h2>Published scores</h2>",
        f"<p>Percent, from {escape(SOURCE)}, which does not say how replies were scored.</p>",
        _table("Beside published scores", ("Benchmark", "Mode", "Here", *MODELS, "To know"), rows),
    ]


def _bars(
    name: str,
    results: Sequence[TaskResult],
    ticks: Sequence[float],
    label: str,
    draw: Callable[[TaskResult, Callable[[float], float], float], list[str]],
) -> str:
    bottom = TOP + ROW * len(results)

    def x(value: float) -> float:
        return round(LEFT + value / (ticks[-1] or 1) * (WIDTH - LEFT - RIGHT), 1)

    parts = [f"<title>{escape(name)}</title>"]
    for tick in ticks:
        parts += [
            line([(x(tick), TOP - 10), (x(tick), bottom)], GRID),
            text(x(tick), bottom + 16, label.format(tick), "middle"),
        ]
    for number, result in enumerate(results):
        y = TOP + ROW * number + ROW / 2
        same = number and results[number - 1].task == result.task
        parts += [] if same else [text(LEFT - 10, y + 4, _short(result.task), "end")]
        parts += draw(result, x, y)
    for number, think in enumerate(sorted({result.think for result in results}, reverse=True)):
        at = LEFT + 110 * number
        parts += [line([(at, 14), (at + 20, 14)], BARS[think], 10), text(at + 26, 18, MODES[think])]
    return document(WIDTH, bottom + 26, parts)


def _diamond(x: float, y: float) -> str:
    corners = f"{x},{y - 6} {x + 6},{y} {x},{y + 6} {x - 6},{y}"
    return f'<polygon points="{corners}" fill="white" stroke="#111"/>'


def _short(name: str, most: int = 32) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f'<th scope="col">{escape(each)}</th>' for each in head)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{cells}</tr>" for cells in lines)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _percent(share: Share) -> str:
    return "-" if share["share"] is None else f"{share['share']:.1%}"


def _interval(share: Share) -> str:
    return "-" if share["interval"] is None else "{:.1%} to {:.1%}".format(*share["interval"])
