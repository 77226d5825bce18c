"""Fills the measured parts of ``models/nano/README.md``: ``python docs/model_card.py``.

Reads ``models/nano/eval.json`` (``axk1 eval models/nano --json``) and ``models/nano/log.jsonl`` (the stages' logs of
``axk1 train``, one after the other); writes the tables between the card's markers and the curve ``curve.svg``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from axk1.files import write_text

CARD = Path(__file__).parents[1] / "models" / "nano"
LANGUAGES = {"en": "English", "ko": "Korean", "zh": "Chinese", "ja": "Japanese", "es": "Spanish"}


def accuracy_table(report: dict[str, Any]) -> str:
    """Think / Non-Think accuracy per language and task, in Markdown."""
    think, plain = report["think"], report["non_think"]
    tasks = list(think["by_task"])

    def cell(part: str, key: str | None = None) -> str:
        left, right = (mode[part] if key is None else mode[part][key] for mode in (think, plain))
        return "-" if left["share"] is None else f"{100 * left['share']:.1f} / {100 * right['share']:.1f}"

    rows = [["", *tasks, "all"], ["---"] * (len(tasks) + 2)]
    for code in sorted(think["by_language"], key=list(LANGUAGES).index):
        cells = [cell("by_language_and_task", f"{code}/{task}") for task in tasks]
        rows.append([LANGUAGES[code], *cells, cell("by_language", code)])
    rows.append(["all", *[cell("by_task", task) for task in tasks], cell("all")])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    steps = f"Several steps needed ({think['multi_step']['count']} problems): {cell('multi_step')}."
    modes = f"Mode obeyed {100 * report['mode_obeyed']['share']:.2f}%, language kept"
    kept = f"{100 * report['language_kept']['share']:.2f}%, MTP second-token acceptance"
    return "\n".join([*lines, "", steps, f"{modes} {kept} {100 * report['mtp_acceptance']:.1f}%."])


def stage_table(log: list[dict[str, Any]]) -> str:
    """Steps, learning rate and last losses of each stage, in Markdown."""
    lines = ["| stage | steps | learning rate | next-token loss | MTP loss |", "| --- | --- | --- | --- | --- |"]
    for name, stage, points in stages(log):
        last = points[-1]
        rate = f"{stage['learning_rate']:g}, {stage['schedule']}"
        drafts = stage.get("drafts", 1)
        mtp = f"{last['mtp_loss']:.3f}" + (f" (mean of {drafts} drafts)" if drafts > 1 else "")
        lines.append(f"| {name} | {stage['steps']:,} | {rate} | {last['lm_loss']:.3f} | {mtp} |")
    return "\n".join(lines)


def stages(log: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """(name, settings, logged points) of every stage in the log."""
    found: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = []
    for line in log:
        if "stage" in line:
            found.append((line["stage"]["name"], line["stage"], []))
        elif "lm_loss" in line:
            found[-1][2].append(line)
    return found


def draw_curve(log: list[dict[str, Any]], path: Path) -> None:
    """Both losses over all steps, stages marked."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "axk1"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.5))
    start = 0
    for name, stage, points in stages(log):
        steps = [start + point["step"] for point in points]
        for key, colour in (("lm_loss", "tab:blue"), ("mtp_loss", "tab:orange")):
            label = {"lm_loss": "next token", "mtp_loss": "MTP"}[key] if start == 0 else None
            axes.plot(steps, [point[key] for point in points], color=colour, label=label)
        axes.axvline(start, color="grey", linewidth=0.5)
        axes.text(start, axes.get_ylim()[1], f" {name}", va="top", fontsize=8)
        start += stage["steps"]
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token)", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def fill(card: str, name: str, content: str) -> str:
    """Replaces what stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", card)


def main() -> None:
    """Rewrites the card and the curve."""
    report = json.loads((CARD / "eval.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (CARD / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    draw_curve(log, CARD / "curve.svg")
    card = (CARD / "README.md").read_text(encoding="utf-8")
    card = fill(fill(card, "accuracy", accuracy_table(report)), "stages", stage_table(log))
    write_text(CARD / "README.md", card)


if __name__ == "__main__":
    main()
