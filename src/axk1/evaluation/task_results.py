"""What came of one task in one mode, whichever library brought it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from axk1.evaluation.benchmarks import benchmark, published
from axk1.evaluation.held_out import obeys_mode
from axk1.evaluation.intervals import Share, share_of

if TYPE_CHECKING:
    from axk1.chat import Reply
    from axk1.evaluation.held_out import Result

MODES = {True: "Think", False: "Non-Think"}


@dataclass(frozen=True)
class TaskResult:
    """One task in one mode: a share by metric; problems, and replies to them, which are more with repeats; tokens of a
    reply, reasoning and answer together."""

    task: str
    think: bool
    scores: Mapping[str, Share]
    problems: int
    replies: int
    mean_tokens: float
    longest_tokens: int
    mode_obeyed: Share

    @property
    def mode(self) -> str:
        """As people write it."""
        return MODES[self.think]

    @property
    def main(self) -> str:
        """The metric that is set beside published scores; of other tasks, the last: filters become more lenient."""
        named = benchmark(self.task)
        return named.metric if named is not None and named.metric in self.scores else list(self.scores)[-1]

    def record(self) -> dict[str, Any]:
        """For JSON, with the published scores (percent, by model) of the benchmark that this is a task of."""
        return asdict(self) | {"scores": dict(self.scores), "published": published(self.task, self.think)}


def of_replies(
    task: str, think: bool, scores: Mapping[str, Share], replies: Sequence[tuple[Any, int, bool]]
) -> TaskResult:
    """The result of ``replies``: the problem of each, its length in tokens, and whether it obeyed its mode.

    Raises:
        ValueError: when there are none.
    """
    if not replies:
        raise ValueError(f"{task} has no problems; raise --problems, or look at its data.")
    lengths = [tokens for _, tokens, _ in replies]
    return TaskResult(
        task=task,
        think=think,
        scores=scores,
        problems=len({problem for problem, _, _ in replies}),
        replies=len(replies),
        mean_tokens=round(sum(lengths) / len(lengths), 1),
        longest_tokens=max(lengths),
        mode_obeyed=share_of((problem, float(obeyed)) for problem, _, obeyed in replies),
    )


def of_results(task: str, results: Iterable[Result]) -> list[TaskResult]:
    """Of our own problems, a result for each mode that was asked for; Think first."""
    by_mode: dict[bool, list[Result]] = {}
    for result in results:
        by_mode.setdefault(result.think, []).append(result)
    return [
        of_replies(
            task,
            think,
            {"correct": share_of((r.question, float(r.correct)) for r in found)},
            [(r.question, r.tokens, r.mode_obeyed) for r in found],
        )
        for think, found in sorted(by_mode.items(), reverse=True)
    ]


def judged(reply: Reply, think: bool) -> tuple[int, bool]:
    """Tokens of a reply, and whether it obeyed its mode."""
    return reply.reasoning_tokens + reply.answer_tokens, obeys_mode(reply, think)
