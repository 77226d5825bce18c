"""A reply as blocks that follow each other: reasoning, text, calls."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from axk1.generation.sampling import TokenLogprobs
from axk1.serve.calls import CallArguments, CallEnd, CallStart, Text
from axk1.serve.replies import Event, Step, Thought

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Block:
    """A part of a reply. ``name``: of a call's function; ``text``: its arguments, then."""

    index: int
    kind: Kind
    name: str = ""
    parts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of a text's tokens, where they are asked for."""

    @property
    def text(self) -> str:
        """All that was written so far."""
        return "".join(self.parts)


@dataclass(frozen=True, slots=True)
class Change:
    """A block begins, grows by ``text``, or ends."""

    what: Literal["begins", "grows", "ends"]
    block: Block
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()


class Blocks:
    """Takes events, and gives out what they change; one block is open at a time."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open = False

    def feed(self, event: Event) -> Iterator[Change]:
        """What ``event`` changes."""
        match event:
            case Thought(text):
                yield from self._grow("reasoning", text)
            case Text(text, logprobs):
                yield from self._grow("text", text, logprobs)
            case CallStart(_, name):
                yield from self._begin("call", name)
            case CallArguments(_, text):
                yield from self._grow("call", text)
            case CallEnd():
                yield from self.finish()

    def finish(self) -> Iterator[Change]:
        """Ends the block that is open."""
        if self._open:
            self._open = False
            yield Change("ends", self.all[-1])

    def _begin(self, kind: Kind, name: str = "") -> Iterator[Change]:
        yield from self.finish()
        self.all.append(Block(len(self.all), kind, name))
        self._open = True
        yield Change("begins", self.all[-1])

    def _grow(self, kind: Kind, text: str, logprobs: tuple[TokenLogprobs, ...] = ()) -> Iterator[Change]:
        if not self._open or self.all[-1].kind != kind:
            yield from self._begin(kind)
        self.all[-1].parts.append(text)
        self.all[-1].logprobs += logprobs
        yield Change("grows", self.all[-1], text, logprobs)


class Whole:
    """All that a choice's steps brought."""

    def __init__(self) -> None:
        self.logprobs: list[TokenLogprobs] = []
        self._blocks = Blocks()

    def add(self, step: Step) -> None:
        """Takes the next step."""
        self.logprobs += step.logprobs
        for event in step.events:
            for _ in self._blocks.feed(event):
                pass

    @property
    def blocks(self) -> list[Block]:
        """The parts of the reply, in order."""
        return self._blocks.all

    @property
    def reasoning(self) -> str:
        """All reasoning."""
        return "".join(block.text for block in self.blocks if block.kind == "reasoning")

    @property
    def answer(self) -> str:
        """All text outside of reasoning and calls."""
        return "".join(block.text for block in self.blocks if block.kind == "text")

    @property
    def calls(self) -> list[Block]:
        """The calls, whose texts are their arguments."""
        return [block for block in self.blocks if block.kind == "call"]
