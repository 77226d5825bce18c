"""Measures a checkpoint on held-out problems: both modes, five languages, and the MTP module's acceptance."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from axk1.generation.sampling import GREEDY
from axk1.generation.speculate import NO_DRAFTS
from axk1.tasks import Problem, answer_language, generate, score

if TYPE_CHECKING:
    from axk1.chat import Chat, Reply

TAGS = ("<think>", "</think>")


@dataclass(frozen=True)
class Result:
    """One reply to one held-out problem."""

    task: str
    language: str
    multi_step: bool
    think: bool
    question: str
    expected: str
    reasoning: str
    answer: str
    correct: bool
    mode_obeyed: bool
    language_kept: bool
    tokens: int


def held_out_problems(count: int, seed: int = 0) -> list[Problem]:
    """``count`` different held-out problems; tasks in the usual shares, languages evenly."""
    found: dict[str, Problem] = {}
    for problem in generate("heldout", seed):
        found.setdefault(problem.question, problem)
        if len(found) == count:
            break
    return list(found.values())


def answer_problems(
    chat: Chat,
    problems: list[Problem],
    think: bool,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 256,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """Greedy replies in one mode, in the problems' order; ``progress`` is told how many are done."""
    results: list[Result | None] = [None] * len(problems)
    by_length = sorted(range(len(problems)), key=lambda i: len(problems[i].question))  # little padding, fewer steps
    for start in range(0, len(by_length), batch_size):
        chosen = by_length[start : start + batch_size]
        conversations = [[{"role": "user", "content": problems[i].question}] for i in chosen]
        replies = chat.reply_batch(
            conversations, think=think, sampling=GREEDY, max_new_tokens=max_new_tokens, drafts=NO_DRAFTS
        )
        for i, reply in zip(chosen, replies, strict=True):
            results[i] = _judge(problems[i], reply, think)
        progress(start + len(chosen))
    return results  # pyright: ignore[reportReturnType]


def _judge(problem: Problem, reply: Reply, think: bool) -> Result:
    return Result(
        task=problem.task,
        language=problem.language,
        multi_step=problem.multi_step,
        think=think,
        question=problem.question,
        expected=problem.value,
        reasoning=reply.reasoning,
        answer=reply.answer,
        correct=reply.finish_reason == "stop" and score(problem, reply.answer),
        mode_obeyed=obeys_mode(reply, think),
        language_kept=answer_language(reply.answer) == problem.language,
        tokens=reply.reasoning_tokens + reply.answer_tokens,
    )


def obeys_mode(reply: Reply, think: bool) -> bool:
    """Think: some reasoning, closed once, then an answer. Non-Think: an answer and neither reasoning nor a tag."""
    plain = bool(reply.answer.strip()) and not any(tag in reply.answer for tag in TAGS)
    return plain and reply.finish_reason == "stop" and bool(reply.reasoning.strip()) == think


def acceptance(chat: Chat, results: Iterable[Result], batch_size: int = 32) -> float:
    """MTP second-token acceptance over the generated tokens of ``results`` (greedy replies of ``chat``'s own model)."""
    import torch

    from axk1.generation.mtp import mtp_acceptance

    total, accepted = 0, 0.0
    stream = iter(results)
    while chosen := list(islice(stream, batch_size)):
        prompts = [chat.prompt([{"role": "user", "content": r.question}], r.think) for r in chosen]
        replies = [_reply_ids(chat, r) for r in chosen]
        rows = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
        batch = chat.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        share = mtp_acceptance(chat.model, batch["input_ids"], batch["attention_mask"], lengths)  # pyright: ignore
        counted = sum(len(reply) - 1 for reply in replies)
        total, accepted = total + counted, accepted + share * counted
    return accepted / total


def _reply_ids(chat: Chat, result: Result) -> list[int]:
    text = f"{result.reasoning}</think>{result.answer}" if result.think else result.answer
    return chat.tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]  # pyright: ignore


def summary(results: list[Result]) -> dict[str, Any]:
    """Shares over ``results`` of both modes: accuracy by mode, task, language and steps; obedience; language."""

    def share(chosen: Iterable[Result], what: str = "correct") -> dict[str, Any]:
        values = [getattr(r, what) for r in chosen]
        return {"share": round(sum(values) / len(values), 4) if values else None, "count": len(values)}

    languages, tasks = sorted({r.language for r in results}), sorted({r.task for r in results})
    modes = {"think": [r for r in results if r.think], "non_think": [r for r in results if not r.think]}
    report: dict[str, Any] = {
        "mode_obeyed": share(results, "mode_obeyed"),
        "language_kept": share(results, "language_kept"),
    }
    for mode, chosen in modes.items():
        report[mode] = {
            "all": share(chosen),
            "multi_step": share(r for r in chosen if r.multi_step),
            "by_task": {t: share(r for r in chosen if r.task == t) for t in tasks},
            "by_language": {x: share(r for r in chosen if r.language == x) for x in languages},
            "by_language_and_task": {
                f"{x}/{t}": share(r for r in chosen if (r.language, r.task) == (x, t)) for x in languages for t in tasks
            },
            "mean_tokens": round(sum(r.tokens for r in chosen) / max(len(chosen), 1), 1),
        }
    return report
