"""Story problems: somebody has things, some events change how many, and the question asks for the number."""

from __future__ import annotations

from random import Random

from axk1.tasks.arithmetic import written
from axk1.tasks.language import join_particles
from axk1.tasks.text import TABLES
from axk1.tasks.types import Pool, Problem, Split, Tables

LARGEST = 150


class _Story:
    """Sentences and trace of one story while it is drawn; `current` is the number after the last event."""

    def __init__(self, tables: Tables, split: Split, rng: Random) -> None:
        self.tables, self.rng = tables, rng
        self.split: Split = split
        self.name = rng.choice(tables.names.train if split == "train" else tables.names.heldout)
        self.slots = dict(rng.choice(tables.items))
        self.sentences: list[str] = []
        self.trace: list[str] = []
        self.numbers: list[int] = []
        self.used: list[str] = []
        self.current = 0
        self.then = ""

    def say(self, kind: str, pool: Pool, then: str = "", **numbers: int) -> list[int]:
        """Append one sentence of `pool`, after the connective `then`; returns the numbers in the order it says them."""
        slot, text = pool.pick(self.split, self.rng)
        if then:
            text = then + text[0].lower() + text[1:]
        self.used.append(f"{kind}:{slot}")
        self.sentences.append(text.format(name=self.name, **self.slots, **numbers))
        self.numbers.extend(numbers.values())
        return [numbers[slot] for slot in sorted(numbers, key=lambda slot: text.index("{" + slot + "}"))]

    def happen(self, kind: str, **numbers: int) -> list[int]:
        """Append the sentence of one event, half of the time with a connective."""
        self.then = self.rng.choice([word for word in self.tables.then if word != self.then])
        return self.say(kind, self.tables.events[kind], self.then if self.rng.random() < 0.5 else "", **numbers)

    def note(self, kind: str, *steps: str) -> None:
        self.trace.append(f"{self.tables.labels[kind]} {', '.join(steps)}.")

    def open(self) -> None:
        if self.rng.random() < 0.2:
            n, m = self.say("packed", self.tables.opening_packed, n=self.rng.randint(2, 6), m=self.rng.randint(2, 6))
            self.current = n * m
            self.note("start", written(n, "*", m))
        else:
            self.current = self.rng.randint(5, 60)
            self.say("open", self.tables.opening, n=self.current)
            self.note("start", str(self.current))

    def change(self, by: int) -> None:
        """A gain, or a loss where `by` is negative."""
        kind, sign, before = ("gain", "+", self.current) if by > 0 else ("lose", "-", self.current)
        self.current += by
        self.happen(kind, n=abs(by))
        self.note(kind, written(before, sign, abs(by)))

    def event(self) -> None:
        """One event that keeps the number in 1..LARGEST."""
        draw, before = self.rng.random(), self.current
        if draw < 0.15 and 2 * before <= LARGEST:
            self.current = 2 * before
            self.happen("double")
            self.note("double", written(before, "+", before))
        elif draw < 0.32:
            n, m = self.happen("boxes", n=self.rng.randint(2, 6), m=self.rng.randint(2, 6))
            self.current += n * m
            self.note("boxes", written(n, "*", m), written(before, "+", n * m))
        elif draw < 0.68 and before > 4:
            self.change(-self.rng.randint(2, min(before - 1, 30)))
        else:
            self.change(self.rng.randint(2, 30))

    def share(self) -> bool:
        """Bring the number to a small multiple and divide it; False where no event of 2 or more does so."""
        people, each = self.rng.randint(2, 6), self.rng.randint(2, 6)
        if abs(people * each - self.current) < 2:
            return False
        self.change(people * each - self.current)
        self.happen("share", n=people)
        self.note("share", written(self.current, "/", people))
        self.current = each
        return True

    def close(self, shared: bool) -> None:
        self.say("ask", self.tables.closing_share if shared else self.tables.closing)


def build(split: Split, language: str, rng: Random) -> Problem | None:
    """One story problem of 2 to 4 operations, or None where the draw does not fit (the caller draws again)."""
    tables = TABLES[language]
    story = _Story(tables, split, rng)
    story.open()
    shared = rng.random() < 0.15
    if shared:
        if not story.share():
            return None
    else:
        for _ in range(rng.choice((2, 2, 3))):
            story.event()
    story.close(shared)
    operations = sum(sentence.count("=") - sentence.count(":") for sentence in story.trace)
    if not 2 <= operations <= 4 or story.current > LARGEST:
        return None
    return Problem(
        task="word",
        language=language,
        question=join_particles(tables.sentence_gap.join(story.sentences)),
        reasoning=" ".join(story.trace),
        answer=tables.number_answer.format(v=story.current),
        value=str(story.current),
        numbers=tuple(story.numbers),
        template=f"word/{language}/{'/'.join(story.used)}",
        names=(story.name,),
        multi_step=True,
        split=split,
    )
