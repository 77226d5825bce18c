"""How many tokens of prompts a step reads, so that replies keep flowing while prompts arrive."""

LEAST = 16
"""Tokens of prompts in a step at least, however slow they are: prompts have to be read as well."""
_SHARE = 0.25  # of the newest measurement in the running means


class Pace:
    """Chooses the tokens of prompts in the next step, by measuring.

    Replies beside which prompts are read, or which take turns with them, are to come at most ``stretch`` times as late
    as without. Steps that nobody waits for read as much as they may. None of this changes a bit where prompts can be
    cut anywhere.

    Args:
        most: tokens of prompts in a step at most.
        stretch: how much later, above 1.
    """

    def __init__(self, most: int, stretch: float) -> None:
        self._most, self._stretch = most, stretch
        self._steps: dict[int, float] = {}
        """Seconds of a step without prompts, by the number of replies in powers of two."""
        self._token: float | None = None
        """Seconds that each token of a prompt adds while replies go on."""

    def tokens(self, replying: int) -> int:
        """Of prompts, for the next step, beside ``replying`` replies."""
        if replying == 0:
            return self._most
        step = self._step(replying)
        if step is None or self._token is None:
            return min(LEAST, self._most)
        allowed = int((self._stretch - 1) * step / max(self._token, 1e-9))
        return min(max(allowed, LEAST), self._most)

    def record(self, replying: int, read: int, seconds: float, beside: bool = True) -> None:
        """A step took so long, which read so many tokens of prompts while so many replies went on: beside them, or in
        turns with them."""
        size = replying.bit_length()
        if read == 0:
            self._steps[size] = _mean(self._steps.get(size), seconds)
            return
        step = self._step(replying)
        if replying and step is not None:
            self._token = _mean(self._token, max(seconds - step * beside, 0.0) / read)

    def _step(self, replying: int) -> float | None:
        """Seconds of a step with about as many replies."""
        size = replying.bit_length()
        near = min(self._steps, key=lambda other: (abs(other - size), other), default=None)
        return None if near is None else self._steps[near]


def _mean(before: float | None, new: float) -> float:
    return new if before is None else (1 - _SHARE) * before + _SHARE * new
