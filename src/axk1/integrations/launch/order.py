"""What is to be served and how, and the processes that this takes on one machine."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Literal

from axk1.plan.hardware import Hardware
from axk1.plan.memory import Spare, Step
from axk1.plan.placement import Choice
from axk1.plan.weights import Weights

Engine = Literal["vllm", "sglang"]
ENGINES: tuple[Engine, ...] = ("vllm", "sglang")
SPARE: dict[Engine, Spare] = {"vllm": "middle", "sglang": "last"}
PARSER = "axk1"
"""The reasoning and tool-call parsers that our plugins register in both engines."""
SECRET = "***"


def check_formats(engine: Engine, weights: Weights) -> None:
    """Refuses weights that ``engine`` has no way to read, before anything is started.

    Raises:
        ValueError: some have three bits.
    """
    if any(spec.dtype == "U8" for spec in weights.tensors):
        raise ValueError(
            f"{engine} reads no weights of three bits: quantise the original with --scheme int4 for it, or leave "
            "--engine out, and axk1's own server reads these."
        )


@dataclass(frozen=True)
class Order:
    """Everything that the engines' command lines are made from."""

    model: str
    engine: Engine
    hardware: Hardware
    choice: Choice
    step: Step
    fraction: float = 0.9
    """Part of a GPU's memory that the engine may use."""
    per_expert: bool = False
    """Each expert has tensors of its own, so that a GPU can leave out those of others."""
    loader: str | None = None
    """A loader of the engine's that reads past the page cache, where it is installed."""
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str = "auto"
    drafts: int = 0
    think: bool = False
    api_key: str | None = field(default=None, repr=False)
    head: str | None = None
    """Address of the first machine, where there are several."""
    rank: int = 0
    """Number of this machine."""
    ray_address: str | None = None
    """A Ray cluster that is there already."""
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        last = self.hardware.nodes - 1
        if not 0 <= self.rank <= last:
            raise ValueError(
                f"--node-rank is {self.rank}; with --nodes {self.hardware.nodes} it goes from 0 to {last}."
            )
        if self.rank and self.ray_address:
            raise ValueError("On a Ray cluster that runs already, axk1 serve is started once, without --node-rank.")
        if self.hardware.nodes > 1 and not (self.head or self.ray_address):
            raise ValueError(f"--nodes {self.hardware.nodes} needs --head, the address of the first machine.")


@dataclass(frozen=True)
class Command:
    """One process."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    """Texts that are not shown."""
    files: dict[str, str] = field(default_factory=dict, repr=False)
    """Files that the command reads, by the name that stands for their path in ``arguments``: what nobody else on the
    machine may see. They are this user's alone, and are removed when the command has ended."""
    background: bool = False
    """Runs beside the next command and is stopped after it."""
    wait_for: tuple[str, int] | None = None
    """Address and port that must accept connections first."""

    def __str__(self) -> str:
        """The command as typed into a shell."""
        words = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        text = " ".join([*words, shlex.join(self.arguments)])
        for secret in self.secrets:
            text = text.replace(shlex.quote(secret), SECRET)
        return text + (" &" if self.background else "")
