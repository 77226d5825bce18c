"""How many tokens to draft: as many as the measured tokens per second say, none where drafts do not pay."""

MOST_DRAFTS = 4


class Gate:
    """Chooses the number of drafts per step, by measuring.

    It tries no drafts and one, then one more as long as that is faster, ``trial`` steps each (and one that is not
    counted, since it pays for the change). It holds the fastest for ``hold`` steps and then tries it against one draft
    more and one fewer; each time it is confirmed it is held twice as long, up to ``MOST_HOLD``. Held drafts that become
    slower than another number was are tried again at once. Batches of different size (in powers of two) are measured
    apart. One gate may serve many calls, one after the other; it starts each with what it knows.

    Args:
        most: drafts per step at most.
        trial: steps a number of drafts is tried for.
        hold: steps a decision holds at first.
    """

    def __init__(self, most: int = MOST_DRAFTS, trial: int = 8, hold: int = 64) -> None:
        self._shape = most, trial, hold
        self._trials: dict[int, _Trials] = {}

    def choose(self, sequences: int) -> int:
        """Drafts for the next step of a batch of ``sequences``."""
        return self._of(sequences).choice

    def may_draft(self, sequences: int) -> bool:
        """Whether drafts may be chosen soon: they are held, or being tried."""
        trials = self._of(sequences)
        return trials.choice > 0 or trials.trying

    def record(self, sequences: int, drafts: int, tokens: int, seconds: float) -> None:
        """That step yielded ``tokens``. Steps with another number of drafts than was chosen are passed over."""
        trials = self._of(sequences)
        if drafts == trials.choice:
            trials.record(tokens, seconds)

    def rates(self, sequences: int) -> dict[int, float]:
        """Tokens per second by number of drafts, as last measured."""
        trials = self._of(sequences)
        return {drafts: trials.rate(drafts) for drafts in trials.tokens}

    def _of(self, sequences: int) -> "_Trials":
        size = sequences.bit_length()
        if size not in self._trials:
            self._trials[size] = _Trials(*self._shape)
        return self._trials[size]


class _Trials:
    """The measurements of one size of batch."""

    MOST_HOLD = 4_096
    SLACK = 0.95  # of another number's rate, below which a held number is doubted
    MEMORY = 32  # steps after which the sums of a held number fade

    def __init__(self, most: int, trial: int, hold: int) -> None:
        self._most, self._trial, self._hold = most, trial, hold
        self.tokens: dict[int, float] = {}
        self._seconds: dict[int, float] = {}
        self._queue = [0, 1][: most + 1]
        self._best = -1  # not known yet
        self._left = trial + 1
        self._patience = hold

    @property
    def choice(self) -> int:
        return self._queue[0] if self._queue else self._best

    @property
    def trying(self) -> bool:
        return bool(self._queue)

    def rate(self, drafts: int) -> float:
        return self.tokens[drafts] / max(self._seconds[drafts], 1e-9)

    def record(self, tokens: int, seconds: float) -> None:
        drafts = self.choice
        self._left -= 1
        if self._queue:
            if self._left == self._trial:  # the first after a change
                self.tokens.pop(drafts, None)
                self._seconds.pop(drafts, None)
                return
            self._add(drafts, tokens, seconds, 1.0)
            if self._left == 0:
                self._queue.pop(0)
                self._left = self._trial + 1
                if not self._queue:
                    self._settle(drafts)
            return
        self._add(drafts, tokens, seconds, 1 - 1 / self.MEMORY)
        rival = max((other for other in self.tokens if other != drafts), key=self.rate, default=drafts)
        if self._left <= 0 or (drafts and self.rate(drafts) < self.SLACK * self.rate(rival)):
            self._queue = sorted({n for n in (drafts - 1, drafts, drafts + 1, rival) if 0 <= n <= self._most})
            self._left = self._trial + 1

    def _add(self, drafts: int, tokens: int, seconds: float, keep: float) -> None:
        self.tokens[drafts] = self.tokens.get(drafts, 0.0) * keep + tokens
        self._seconds[drafts] = self._seconds.get(drafts, 0.0) * keep + seconds

    def _settle(self, last: int) -> None:
        """Every number in the queue has been tried, ``last`` the last and the highest."""
        before, self._best = self._best, max(self.tokens, key=self.rate)
        if self._best == last < self._most and last + 1 not in self.tokens:
            self._queue = [last + 1]
            return
        self._patience = min(2 * self._patience, self.MOST_HOLD) if self._best == before else self._hold
        self._left = self._patience
