"""`axk1 demo`: held-out problems in five languages, answered in Think and in Non-Think."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from axk1.cli import chat_options as options
from axk1.cli import streams
from axk1.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from axk1.chat import Chat, Reply
    from axk1.tasks import Problem


LANGUAGES = {"en": "English", "ko": "한국어", "zh": "中文", "ja": "日本語", "es": "Español"}
TASKS = {
    "en": ("word", "calendar"),
    "ko": ("word", "sorting"),
    "zh": ("word", "counting"),
    "ja": ("word", "arithmetic"),
    "es": ("word", "calendar"),
}
SEED = 100  # chosen for its variety, before any model answered
MAX_NEW_TOKENS = 256


class Answered(NamedTuple):
    """One problem answered in one mode."""

    problem: "Problem"
    think: bool
    reply: "Reply"

    @property
    def right(self) -> bool:
        """Whether the answer states the value."""
        from axk1.tasks import score

        return self.reply.closed and score(self.problem, self.reply.answer)

    @property
    def tokens(self) -> int:
        """Generated tokens, reasoning and answer."""
        return self.reply.reasoning_tokens + self.reply.answer_tokens


def demo(
    model: options.Model = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    seed: Annotated[int, typer.Option(help="Another seed asks other problems.")] = SEED,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Answer ten held-out problems in five languages, with reasoning (Think) and directly (Non-Think)."""
    from rich.console import Console

    console = Console(soft_wrap=True, markup=False, emoji=False, highlight=False, quiet=as_json)
    engine = options.load_chat(model, device, "auto", threads)
    results = list(_answer_all(engine, console, draw_problems(seed)))
    if as_json:
        typer.echo(streams.json_text([_record(result) for result in results], indent=2))
    console.print(_table(results))
    console.print("Held-out problems: training saw other numbers, names and wordings. Decoding is greedy.", style="dim")


def draw_problems(seed: int) -> "list[Problem]":
    """Two problems a language, each of several steps, from the held-out split: training saw other numbers, names and
    wordings."""
    from axk1.tasks import generate

    pairs = [(language, task) for language, tasks in TASKS.items() for task in tasks]
    return [
        next(
            problem
            for problem in generate("heldout", seed + i, tasks=[task], languages=[language])
            if problem.multi_step
        )
        for i, (language, task) in enumerate(pairs)
    ]


def _answer_all(engine: "Chat", console: "Console", problems: "list[Problem]") -> Iterator[Answered]:
    for problem in problems:
        console.print(f"{LANGUAGES[problem.language]}: {problem.question}", style="bold")
        for think in (True, False):
            yield _answer(engine, console, problem, think)
        console.print()


def _answer(engine: "Chat", console: "Console", problem: "Problem", think: bool) -> Answered:
    """Streams one reply to the console, the reasoning dimmed and on a line of its own."""
    from axk1.cli.chat_view import write
    from axk1.generation.sampling import GREEDY

    messages = [{"role": "user", "content": problem.question}]
    stream = engine.stream(messages, think=think, sampling=GREEDY, max_new_tokens=MAX_NEW_TOKENS)
    console.print(f"  {'Think' if think else 'Non-Think':<11}", style="cyan", end="")
    previous = None
    for delta in stream:
        if previous == "reasoning" and delta.kind == "answer":
            write(console, f"\n  {'':<11}")
        style = "dim" if delta.kind == "reasoning" else "bold"
        write(console, printable(delta.text), style)
        previous = delta.kind
    result = Answered(problem, think, stream.reply)
    verdict = "right" if result.right else f"wrong, it is {problem.value}"
    console.print(f"  [{verdict}; ", style="green" if result.right else "red", end="")
    console.print(f"{result.tokens} tokens, {result.tokens / result.reply.seconds:.0f} tokens/s]", style="dim")
    return result


def _record(result: Answered) -> dict[str, Any]:
    reply = result.reply
    return {
        **{name: getattr(result.problem, name) for name in ("language", "task", "question", "value")},
        "think": result.think,
        "reasoning": reply.reasoning,
        "answer": reply.answer,
        "right": result.right,
        "tokens": result.tokens,
        "tokens_per_second": round(result.tokens / reply.seconds, 1),
    }


def _table(results: list[Answered]) -> "Table":
    from rich.table import Table

    table = Table("Right answers", *LANGUAGES, "all", "tokens", "tokens/s")
    for think in (True, False):
        chosen = [result for result in results if result.think is think]
        groups = [[r for r in chosen if r.problem.language == language] for language in LANGUAGES]
        cells = [f"{sum(r.right for r in group)}/{len(group)}" for group in (*groups, chosen)]
        tokens, seconds = sum(r.tokens for r in chosen), sum(r.reply.seconds for r in chosen)
        table.add_row("Think" if think else "Non-Think", *cells, str(tokens), f"{tokens / seconds:.0f}")
    return table
