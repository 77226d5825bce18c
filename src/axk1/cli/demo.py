"""`axk1 demo`: held-out problems in five languages, answered in Think and in Non-Think."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from axk1.cli import chat_options as options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from axk1.chat import Chat, Reply


class Question(NamedTuple):
    """One problem and the value its answer must state."""

    language: str
    task: str
    text: str
    value: str


LANGUAGES = {"en": "English", "ko": "한국어", "zh": "中文", "ja": "日本語", "es": "Español"}

# From the held-out split (axk1.train.problems): training saw none of these numbers, names and wordings. Each needs
# several steps. Chosen before any model answered them; tests/integration/test_demo.py draws them again.
QUESTIONS = [
    Question(
        "en",
        "word",
        "Felix has 71 coins on the table. Now Felix buys 3 bags of 2 coins. After that Felix gives 13 to a friend. "
        "How many coins in total does Felix have?",
        "64",
    ),
    Question(
        "en",
        "calendar",
        "Today is Thursday. The work is in 23 days, and the test is 18 days after that. Which weekday is the test?",
        "Wednesday",
    ),
    Question(
        "ko",
        "word",
        "슬기의 책상 위에는 스티커가 49장 있었습니다. 친구가 그중 13장을 가져갔습니다. 슬기는 스티커 7장이 든 "
        "상자를 8개 받았습니다. 이제 슬기에게 스티커가 몇 장 있나요?",
        "92",
    ),
    Question("ko", "sorting", "여기 수가 있습니다: 53, 51, 94, 30. 세 번째로 큰 수를 찾으세요.", "51"),
    Question(
        "zh",
        "word",
        "孙亮家里有3袋书，每袋有7本。现在孙亮的书变成了两倍。之后孙亮从朋友那里又收到了27本书。现在孙亮还剩多少本书？",
        "69",
    ),
    Question("zh", "counting", "下面的数里有几个大于54：9、80、96、34、9、61、8", "3"),
    Question(
        "ja",
        "word",
        "次郎さんの家には切手が7枚入った箱が9箱あります。その後、次郎さんは切手を8枚なくしました。"
        "今度は友だちが次郎さんにあと15枚くれました。次郎さんの切手は何枚になりましたか？",
        "70",
    ),
    Question("ja", "arithmetic", "次の値を求めてください：8×9+33+64", "169"),
    Question(
        "es",
        "word",
        "Por la mañana Inés empieza con 36 botones. Inés recibe 41 botones de un amigo. Inés compra 8 bolsas de 4 "
        "botones. ¿Cuál es el número de botones al final?",
        "109",
    ),
    Question(
        "es",
        "calendar",
        "Hoy es domingo. En 6 días empieza el viaje, y termina 6 días después. ¿Qué día termina?",
        "viernes",
    ),
]
MAX_NEW_TOKENS = 256  # the longest reasoning here takes 75


class Answered(NamedTuple):
    """One question answered in one mode."""

    question: Question
    think: bool
    reply: "Reply"

    @property
    def right(self) -> bool:
        """Whether the answer states the value."""
        from axk1.train.problems import Problem, score

        language, task, text, value = self.question
        problem = Problem(task, language, text, "", "", value, (), "", (), multi_step=True, split="heldout")
        return self.reply.closed and score(problem, self.reply.answer)

    @property
    def tokens(self) -> int:
        """Generated tokens, reasoning and answer."""
        return self.reply.reasoning_tokens + self.reply.answer_tokens


def demo(
    model: Annotated[Path | None, typer.Argument(help="Checkpoint folder. Default: AXK1_MODEL, else the nano.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    device: options.Device = None,
) -> None:
    """Answer ten held-out problems in five languages, with reasoning (Think) and directly (Non-Think)."""
    from rich.console import Console

    console = Console(soft_wrap=True, markup=False, emoji=False, highlight=False, quiet=as_json)
    engine = options.load_chat(model, device, "auto")
    results = list(_answer_all(engine, console))
    if as_json:
        typer.echo(json.dumps([_record(result) for result in results], indent=2, ensure_ascii=False))
    console.print(_table(results))
    console.print("Held-out problems: training saw other numbers, names and wordings. Decoding is greedy.", style="dim")


def _answer_all(engine: "Chat", console: "Console") -> Iterator[Answered]:
    for question in QUESTIONS:
        console.print(f"{LANGUAGES[question.language]}: {question.text}", style="bold")
        for think in (True, False):
            yield _answer(engine, console, question, think)
        console.print()


def _answer(engine: "Chat", console: "Console", question: Question, think: bool) -> Answered:
    """Streams one reply to the console, the reasoning dimmed and on a line of its own."""
    from axk1.generation.sampling import GREEDY

    messages = [{"role": "user", "content": question.text}]
    stream = engine.stream(messages, think=think, sampling=GREEDY, max_new_tokens=MAX_NEW_TOKENS)
    console.print(f"  {'Think' if think else 'Non-Think':<11}", style="cyan", end="")
    previous = None
    for delta in stream:
        if previous == "reasoning" and delta.kind == "answer":
            console.print(f"\n  {'':<11}", end="")
        style = "dim" if delta.kind == "reasoning" else "bold"
        console.print(options.printable(delta.text), style=style, end="")
        previous = delta.kind
    result = Answered(question, think, stream.reply)
    verdict = "right" if result.right else f"wrong, it is {question.value}"
    console.print(f"  [{verdict}; ", style="green" if result.right else "red", end="")
    console.print(f"{result.tokens} tokens, {result.tokens / result.reply.seconds:.0f} tokens/s]", style="dim")
    return result


def _record(result: Answered) -> dict[str, Any]:
    reply = result.reply
    return {
        **result.question._asdict(),
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
        groups = [[r for r in chosen if r.question.language == language] for language in LANGUAGES]
        cells = [f"{sum(r.right for r in group)}/{len(group)}" for group in (*groups, chosen)]
        tokens, seconds = sum(r.tokens for r in chosen), sum(r.reply.seconds for r in chosen)
        table.add_row("Think" if think else "Non-Think", *cells, str(tokens), f"{tokens / seconds:.0f}")
    return table
