"""Sampling options, with the defaults officially recommended for A.X K1."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. ``temperature`` 0 is greedy and ignores ``top_p``, ``top_k`` and ``min_p``.

    Raises:
        ValueError: for a value outside its range.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        rules = {
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "0 or more, and below 2**63"),
        }
        for name, (valid, rule) in rules.items():
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {rule}.")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0


GREEDY = Sampling(temperature=0.0)
