"""Writes the memory arithmetic into the comments of the files here and docs/deploy.md: python deploy/memory.py

The machine and the format of the weights are in a file's name, the rest in its own `axk1 serve` command.
"""

import re
from pathlib import Path

from axk1.files import write_text
from axk1.integrations.launch.explain import explanation
from axk1.integrations.launch.order import SPARE, Order
from axk1.plan.hardware import Hardware
from axk1.plan.memory import GB, Step
from axk1.plan.placement import Wish, choose
from axk1.plan.weights import released_weights

HERE = Path(__file__).parent
GPUS = {"h100": 80, "h200": 141}
NAME = re.compile(r"(?:(?P<nodes>\d)x)?8-(?P<gpu>h100|h200)-(?P<stored>bf16|fp8|int4)-(?P<engine>vllm|sglang)")
BLOCK = re.compile(r"(# begin memory\n).*?(# end memory\n)", re.DOTALL)
PAGE = HERE.parent / "docs/deploy.md"
TABLE = re.compile(r"(<!-- memory -->\n).*?(<!-- end of memory -->\n)", re.DOTALL)
STEP = Step(8192, 64)
"""The defaults of `axk1 serve`."""


def files() -> list[Path]:
    """The files with a comment to write."""
    return sorted(file for file in HERE.glob("*/*") if NAME.fullmatch(file.stem))


def option(text: str, name: str) -> str | None:
    """The value of ``--name`` in a shell command or a YAML list of arguments."""
    found = re.search(rf"--{name}[\s\"-]+([\w./$()]+)", text)
    return found[1] if found else None


def make_order(file: Path) -> Order:
    """What the file serves, on the machines of its name."""
    match = NAME.fullmatch(file.stem)
    assert match is not None
    text = BLOCK.sub("", file.read_text(encoding="utf-8"))
    nodes, engine = int(option(text, "nodes") or 1), option(text, "engine")
    if engine != match["engine"] or nodes != int(match["nodes"] or 1):
        raise ValueError(f"{file}: its name and its command differ")
    hardware = Hardware(8, GPUS[match["gpu"]] * GB, nodes, match["gpu"].upper())
    wish = Wish(context=int(option(text, "context") or 0))
    choice = choose(released_weights(match["stored"]), hardware, wish, STEP, spare=SPARE[engine])
    return Order(f"A.X-K1 ({match['stored']})", engine, hardware, choice, STEP, head="HEAD")  # pyright: ignore[reportArgumentType]


def comment(file: Path) -> str:
    """The lines between the markers."""
    order = make_order(file)
    stored = NAME.fullmatch(file.stem)["stored"]  # pyright: ignore[reportOptionalSubscript]
    machine = f"--nodes {order.hardware.nodes} --gpus 8 --gpu-memory {order.hardware.memory // GB}"
    again = f"axk1 serve A.X-K1 --weights {stored} --engine {order.engine} {machine} --context {order.choice.context}"
    lines = [f"{again} --dry-run", *explanation(order, released_weights(stored)).splitlines()]
    return "".join(f"#   {line}\n" for line in lines)


def written(file: Path) -> str:
    """The whole file with its comment renewed."""
    return BLOCK.sub(lambda match: match[1] + comment(file) + match[2], file.read_text(encoding="utf-8"))


def table() -> str:
    """The machines of the Slurm scripts as a Markdown table, in GB of 10^9 bytes per GPU."""
    titles = ["machine, weights, engine", "tensor x pipeline", "weights", "activations", "reserve", "latents"]
    titles += ["bytes per token", "tokens"]
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for file in sorted(HERE.glob("slurm/*.sbatch")):
        order = make_order(file)
        parallel, memory = order.choice.parallel, order.choice.memory
        sizes = (memory.weights, memory.activations, memory.reserve, memory.cache)
        cells = [f"`{file.stem}`", f"{parallel.tensor} x {parallel.pipeline}", *(f"{size / GB:.2f}" for size in sizes)]
        rows.append(f"| {' | '.join([*cells, f'{memory.latents_per_token:,}', f'{memory.tokens:,}'])} |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """docs/deploy.md with its table renewed."""
    text = PAGE.read_text(encoding="utf-8")
    return TABLE.sub(lambda match: match[1] + table() + match[2], text)


if __name__ == "__main__":
    for path in files():
        write_text(path, written(path))
    write_text(PAGE, page())
