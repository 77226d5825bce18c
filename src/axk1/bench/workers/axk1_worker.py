"""axk1 itself: what `import axk1` gives a user, through the loop that chat, generate and servers use."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from protocol import serve
from torch_engine import TorchEngine

COMPUTED = 8_192
"""Longest context that is computed and decoded by the loop itself; longer ones are filled and decoded by the model."""


class AXK1Engine(TorchEngine):
    """Reads prompts and decodes with ``axk1.generation``."""

    def prefill(self, tokens: int, batch: int = 1, seed: int = 0) -> dict[str, Any]:
        """Seconds until the first token after a prompt of ``tokens``."""
        self.forget()
        steps = self.loop(self.prompt(batch, tokens, seed).tolist(), 1)
        start = self.now()
        assert sum(len(row) for step in steps for row in step) == batch
        return {"seconds": self.now() - start}

    def decode(self, context: int, tokens: int, batch: int = 1) -> dict[str, Any]:
        """Seconds for ``tokens`` steps, from the step in which all sequences got their first token."""
        if context > COMPUTED:
            return super().decode(context, tokens, batch)
        self.forget()
        how: dict[str, Any] = (
            {"prefill_tokens": batch * context} if batch > 1 else {}
        )  # all begin to reply in the same step
        steps = self.loop(self.prompt(batch, context, seed=1).tolist(), tokens + 1, **how)
        while not any(next(steps)):  # a long prompt takes several steps
            pass
        start = self.now()
        made = sum(len(row) for step in steps for row in step)
        assert made == batch * tokens, made
        return {"seconds": self.now() - start}

    def reply(
        self, prompts: list[list[int]], tokens: int, drafts: int = 0, stop_ids: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Greedy replies of up to ``tokens``, one prompt after the other; seconds from each one's first token.

        With ``drafts`` the MTP module proposes that many tokens per step (-1: as many as pay); the replies have to be
        the same as without. What drafting needs of a prompt counts.
        """
        from axk1.generation.gate import Gate
        from axk1.generation.speculate import NO_DRAFTS, Drafts, DraftStatistics

        how = Drafts(drafts, gate=Gate()) if drafts else NO_DRAFTS
        found, replies = DraftStatistics(), []
        for prompt in prompts:
            steps = self.loop([prompt], tokens, stop_ids, drafts=how, statistics=found)
            replies.append([token for (row,) in steps for token in row])
        return {"seconds": sum(found.seconds), "replies": replies, "acceptance": found.acceptance}

    def memory(self) -> dict[str, Any]:
        """Also what the experts' cache did, where there is one."""
        from axk1.experts.store import store_of

        store = store_of(self.model)
        return super().memory() | ({"experts": store.counters().to_dict()} if store else {})

    def loop(self, prompts: list[list[int]], tokens: int, stop_ids: Sequence[int] = (), **how: Any) -> Any:
        """The steps of :func:`axk1.generation.decode.decode`: each row's new tokens."""
        from axk1.generation.decode import decode
        from axk1.generation.sampling import GREEDY

        return decode(self.model, prompts, GREEDY, max_new_tokens=tokens, stop_ids=stop_ids, pad_id=0, **how)


ENGINE: list[AXK1Engine] = []


def load(
    path: str, dtype: str, device: str, threads: int, pack: bool = False, expert_cache: str | None = None, **_: Any
) -> dict[str, Any]:
    """Loads a checkpoint of either layout; with ``pack``, then packs its bfloat16 weights without loss; with
    ``expert_cache``, leaves its routed experts on disk."""
    import axk1
    from axk1.load import load_model

    torch.set_num_threads(threads)
    start = time.perf_counter()
    model = load_model(path, device=device, dtype="packed" if pack else dtype, expert_cache=expert_cache)
    ENGINE[:] = [AXK1Engine(model.eval())]
    return {"seconds": time.perf_counter() - start, "version": axk1.__version__, "fills": True}


if __name__ == "__main__":
    names = ("prefill", "decode", "reply", "answers", "memory")
    serve({"load": load} | {name: lambda name=name, **how: getattr(ENGINE[0], name)(**how) for name in names})
