"""The engine: whatever else runs, waits, leaves or was cached, a request gets the bits that it has alone."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from crowd import CLOSING, Audited, Heard, alone, is_closed, listen, run_crowd, serve
from decoding import Watched, is_compiled, use_executor, use_modules
from tiny import VOCAB, small_model, tokens
from transformers import LogitsProcessor

from axk1.engine.engine import LEAST_REPLY, ModelEngine
from axk1.engine.interface import EngineClosed, EngineFull, Generation, Reasoning, Request, wake
from axk1.engine.settings import Settings, default_pages
from axk1.generation.executors import executor_for
from axk1.generation.pages import PAGE, pages_of
from axk1.generation.sampling import GREEDY, Sampling
from axk1.generation.speculate import AUTO, Drafts

MODEL = small_model(num_nextn_predict_layers=1, max_position_embeddings=1_024)
NO_DRAFTS = Drafts(0)


def prompt(length: int, seed: int = 0) -> list[int]:
    return tokens(1, length, seed)[0].tolist()


def settings(**given: Any) -> Settings:
    return Settings(**{"pages": 40, "streams": 4, "drafts": NO_DRAFTS, "poison": True, "stream_interval": 0, **given})


@pytest.fixture
def started() -> Iterator[Callable[..., Audited]]:
    """Starts engines, and closes them."""
    engines: list[Audited] = []

    def start(model: Any = MODEL, **given: Any) -> Audited:
        engines.append(Audited(model, settings(**given)))
        engines[-1].start()
        return engines[-1]

    yield start
    for engine in engines:
        engine.close(drain=False)
        engine.audit()


needs_kernels = pytest.mark.skipif(not is_compiled(MODEL), reason="no exact kernels here")


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("streams, drafts", [(1, 2), (5, AUTO), (16, 2)])
def test_a_crowd(dtype, streams, drafts) -> None:
    """Mixed sampling, modes, drafts, tenants, cancels, closings by hand and evictions, in a pool that is too small."""
    model = small_model(num_nextn_predict_layers=1, max_position_embeddings=1_024).to(dtype)
    how = settings(streams=streams, drafts=Drafts(drafts), pages=12 + 3 * streams, prompt_tokens=128)
    engine = run_crowd(model, 8 + streams, streams, 2 * streams, how)
    assert engine.exact and engine.statistics().prefix_hits > 0


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_five_hundred_requests(dtype) -> None:
    model = small_model(num_nextn_predict_layers=1, max_position_embeddings=1_024).to(dtype)
    found = []
    for seed, streams in enumerate((1, 2, 4, 8, 32)):
        how = settings(streams=streams, drafts=Drafts((2, AUTO)[seed % 2]), pages=12 + 3 * streams, prompt_tokens=256)
        found.append(run_crowd(model, 100, 100 + seed, 2 * streams, how).statistics())
    assert all(s.prefix_hits > 0 and s.drafted > s.accepted >= 0 for s in found)


@needs_kernels
@pytest.mark.parametrize("drafts", [0, 2])
def test_a_prefix_is_read_once(started, drafts) -> None:
    """Full pages before the last token of a prompt; not those that a reply was written to."""
    engine = started(drafts=Drafts(drafts))
    long = prompt(5 * PAGE)

    async def main() -> list[Heard]:
        heard = []
        for length in (3 * PAGE + 1, 3 * PAGE, 3 * PAGE + 1, 5 * PAGE, 5 * PAGE):
            request = Request(long[:length], GREEDY, max_new_tokens=PAGE, top_logprobs=3)
            heard.append(await listen(engine, request))
        follow = [*long[:100], *heard[0].tokens]  # a reply comes back as a part of the next prompt: it is read again
        heard.append(await listen(engine, Request(follow, GREEDY, max_new_tokens=3, top_logprobs=3)))
        return heard

    heard = asyncio.run(main())
    assert [each.generation.cached_tokens // PAGE for each in heard] == [0, 2, 3, 3, 4, 1]
    for each in heard:
        expected = alone(MODEL, each.generation.request)
        assert each.tokens == expected.reply and each.logprobs == expected.logprobs
    found = engine.statistics()
    assert (found.prefix_hits, found.prefix_queries) == (13 * PAGE, found.prompt_tokens)
    assert found.pages_cached == 5 == len(engine.tree)


@needs_kernels
def test_many_choices_of_one_prompt_share_its_pages_at_once(started) -> None:
    engine = started(prompt_tokens=PAGE, streams=5, drafts=Drafts(2))
    same = [Request(prompt(300), Sampling(1.0, seed=n), max_new_tokens=9, top_logprobs=0) for n in range(4)]

    async def main() -> list[Heard]:
        return list(await asyncio.gather(*(listen(engine, request) for request in same)))

    heard = asyncio.run(main())
    assert sorted(each.generation.cached_tokens // PAGE for each in heard) == [0, 4, 4, 4]
    assert len({tuple(each.tokens) for each in heard}) > 1
    for each in heard:
        expected = alone(MODEL, each.generation.request)
        assert each.tokens == expected.reply and each.logprobs == expected.logprobs


def test_tenants_share_nothing(started) -> None:
    engine = started()

    async def main() -> list[int]:
        found = []
        for tenant in ("a", "b", "a"):
            heard = await listen(engine, Request(prompt(200), GREEDY, max_new_tokens=2, tenant=tenant))
            found.append(heard.generation.cached_tokens)
        return found

    first, second, third = asyncio.run(main())
    assert (first, second) == (0, 0) and third >= 2 * PAGE


@needs_kernels
def test_who_drafts_takes_pages_that_the_module_has_run_over(started) -> None:
    """And the token after them has to be the same; who does not draft takes any."""
    engine = started(drafts=Drafts(2))
    begin, runs = prompt(3 * PAGE), []

    async def main() -> None:
        for tail, drafts in (([5, 6], False), ([5, 6], True), ([5, 7], True), ([9, 6], True), ([9, 9], False)):
            heard = await listen(engine, Request(begin + tail, GREEDY, max_new_tokens=8, drafts=drafts, top_logprobs=1))
            runs.append(heard)

    asyncio.run(main())
    assert [each.generation.cached_tokens // PAGE for each in runs] == [0, 0, 3, 2, 3]
    for each in runs:
        expected = alone(MODEL, each.generation.request)
        assert each.tokens == expected.reply and each.logprobs == expected.logprobs
        assert (each.generation.drafted > 0) == each.generation.request.drafts


def test_where_cuts_change_bits_prompts_are_cut_at_fixed_places(monkeypatch) -> None:
    """A stream on the modules: cold, cached and by itself are the same, to the bit."""
    use_modules(monkeypatch)
    engine = Audited(MODEL, settings(prompt_tokens=128, streams=1))
    assert not engine.exact
    request = Request(prompt(400), GREEDY, max_new_tokens=9, top_logprobs=3)

    async def main() -> list[Heard]:
        return [await listen(engine, request) for _ in range(2)]

    engine.start()
    cold, warm = asyncio.run(main())
    engine.close()
    assert (cold.generation.cached_tokens, warm.generation.cached_tokens) == (0, 384)
    assert cold.tokens == warm.tokens and cold.logprobs == warm.logprobs


def test_kept_pages_go_before_anybody_waits_and_nothing_is_lost(started) -> None:
    engine = started(pages=8, streams=8)
    requests = [Request(prompt(130, n), GREEDY, max_new_tokens=60, top_logprobs=0) for n in range(6)]

    async def main() -> list[Heard]:
        return list(await asyncio.gather(*(listen(engine, request) for request in requests)))

    heard = asyncio.run(main())
    assert all(len(each.tokens) == 60 for each in heard)
    times = [each.generation.times for each in heard]
    assert all(t.admitted is not None and t.first_token is not None and t.finished is not None for t in times)
    assert [t.admitted for t in times] == sorted(t.admitted for t in times)  # pyright: ignore
    found = engine.statistics()
    assert found.preemptions == 0 and found.pages_total == 8 and found.pages_cached <= 8


def test_the_queue_ends_where_the_prompt_is_begun(started, monkeypatch) -> None:
    engine = started()
    step = engine.loop.step

    def slow() -> Any:
        time.sleep(0.05)
        return step()

    monkeypatch.setattr(engine.loop, "step", slow)
    times = asyncio.run(listen(engine, Request(prompt(20), GREEDY, max_new_tokens=1))).generation.times
    assert times.admitted is not None and times.first_token is not None
    assert times.first_token - times.admitted >= 0.05  # the step counts as reading, not as waiting


class Once(LogitsProcessor):
    """Raises at its second call, which is of a draft."""

    calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 2:
            raise ValueError("not this draft")
        return scores


def test_a_draft_that_fails_is_no_matter_of_others(started) -> None:
    """Its own request goes on without drafts, the others with theirs; the next step reads a prompt beside the reply."""
    other = Request(prompt(300, 1), GREEDY, max_new_tokens=10)

    async def main(engine: Audited, processors: list[LogitsProcessor]) -> list[Heard]:
        first = Request(prompt(9), GREEDY, max_new_tokens=20, processors=processors)
        return list(await asyncio.gather(listen(engine, first), listen(engine, other)))

    drafting, plain = started(drafts=Drafts(2), prompt_tokens=64), started(prompt_tokens=64)
    failing = Once()
    found, expected = asyncio.run(main(drafting, [failing])), asyncio.run(main(plain, []))
    assert failing.calls > 2 and [h.generation.finish_reason for h in found] == ["length", "length"]
    assert [h.tokens for h in found] == [h.tokens for h in expected]
    assert found[0].generation.drafted == 0 < found[1].generation.drafted
    assert drafting.statistics().failed_steps == 0


class Late(LogitsProcessor):
    """Takes tokens from the second half of the vocabulary alone, as a grammar might."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, : VOCAB // 2] = -torch.inf
        return scores


@needs_kernels
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, seed=3), Sampling(1.0)])
def test_a_request_whose_tokens_the_module_cannot_name_gets_no_draft(monkeypatch, sampling) -> None:
    """Its head may know a part of the vocabulary; nobody's step fails."""

    class Few(Watched):
        def draft(self, batch, hidden):
            made = super().draft(batch, hidden)
            made.logits[:, VOCAB // 2 :] = -torch.inf
            return made

        def speculate(self, module, hidden, trunk, count):
            return None

    use_executor(monkeypatch, lambda *given: Few(executor_for(*given)))
    engine = Audited(MODEL, settings(drafts=Drafts(2)))
    late = Request(prompt(9), sampling, max_new_tokens=60, processors=[Late()])
    free = Request(prompt(9, 1), Sampling(0.0, frequency_penalty=0.1), max_new_tokens=60)
    first, second = serve(engine, late, free)
    assert engine.statistics().failed_steps == 0 and first.generation.drafted == 0 < second.generation.drafted
    assert min(first.tokens) >= VOCAB // 2 and len(first.tokens) == 60
    for each in [second] if sampling == Sampling(1.0) else [first, second]:
        assert each.tokens == alone(MODEL, each.generation.request).reply


@needs_kernels
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, seed=3)])
@pytest.mark.parametrize("failures", [1, 3])
def test_drafts_go_on_after_steps_that_failed(monkeypatch, caplog, sampling, failures) -> None:
    """Those of the very same bits: what drafts are computed from is not lost, wherever the step failed."""
    made: list[int] = []
    drafted = [0]

    class Interrupted(Watched):
        def step(self, batch):
            self._fail(batch.wanted)
            return super().step(batch)

        def speculate(self, module, hidden, trunk, count):
            found = super().speculate(module, hidden, trunk, count)  # all has been computed, and is lost
            if found is not None:
                self._fail(trunk.wanted)
            return found

        def _fail(self, wanted):
            if max(wanted) > 1 and drafted[0] > 20 and len(made) < failures:  # after the engine has warmed up
                made.append(1)
                raise RuntimeError("out of memory")
            drafted[0] += max(wanted) > 1

    use_executor(monkeypatch, lambda *given: Interrupted(executor_for(*given)))
    engine = Audited(MODEL, settings(drafts=Drafts(2)))
    requests = [Request(prompt(9, n), sampling, max_new_tokens=200, top_logprobs=2) for n in range(2)]
    first, second = serve(engine, *requests)
    assert len(made) == failures == engine.statistics().failed_steps
    assert [record.message for record in caplog.records].count("A step of the model failed, 1 in a row") == failures
    assert "out of memory" in caplog.text and "Traceback" in caplog.text
    for each in (first, second):
        expected = alone(MODEL, each.generation.request)
        assert each.tokens == expected.reply and each.logprobs == expected.logprobs
        assert each.generation.finish_reason == "length" and each.generation.drafted > 100


def test_what_can_never_be_is_refused(started) -> None:
    engine = started(pages=4)
    assert engine.max_tokens == 4 * PAGE

    async def main() -> None:
        for request, message in (
            (
                Request(prompt(250), max_new_tokens=7),
                "The prompt has 250 tokens and max_new_tokens is 7; together they",
            ),
            (Request(prompt(256)), "The prompt has 256 tokens; together"),
            (Request(prompt(256), max_new_tokens=0, prompt_logprobs=0), "together they may have 255"),
            (Request([1, VOCAB]), "The prompt has a token outside the vocabulary of 61"),
            (Request([1], Sampling(logit_bias={VOCAB: 1.0})), "logit_bias has a token outside"),
            (Request([1], reasoning=Reasoning([99], is_closed)), "The end of the reasoning has a token outside"),
        ):
            with pytest.raises(ValueError, match=message):
                engine.submit(request)
        made: list[tuple[Any, dict[str, Any]]] = [
            (Request, {"prompt": []}),
            (Request, {"prompt": [1], "max_new_tokens": 0}),
            (Request, {"prompt": [1], "top_logprobs": -1}),
            (Reasoning, {"is_closed": is_closed, "closing": []}),
            (Reasoning, {"is_closed": is_closed, "closing": [1], "budget": 0}),
        ]
        for kind, fields in made:
            with pytest.raises(ValueError, match=r"empty|must be|no closing"):
                kind(**fields)

    asyncio.run(main())
    with pytest.raises(ValueError, match="prompt_tokens is 1; it must be 64 or more"):
        Settings(prompt_tokens=1)
    assert engine.statistics().waiting == 0


def test_a_reply_without_a_limit_gets_a_fair_share(started) -> None:
    """Of the pool, so that all streams have room at once; no less than a reply needs."""
    model = small_model(max_position_embeddings=16_384)
    engine = started(model, pages=1_000, streams=8)
    small = started(model, pages=40, streams=8)

    async def limits(engine: ModelEngine, *lengths: int) -> list[int]:
        made = [engine.submit(Request(prompt(length))) for length in lengths]
        for generation in made:
            generation.cancel()
        return [generation.max_new_tokens for generation in made]

    assert asyncio.run(limits(engine, 100, 7_900)) == [8_000 - 100, LEAST_REPLY]
    assert asyncio.run(limits(small, 100, 2_000)) == [LEAST_REPLY, 560]


def test_a_full_waiting_list(started) -> None:
    engine = started(streams=1, waiting=1)

    async def main() -> None:
        made = [engine.submit(Request([1, 2], GREEDY, max_new_tokens=1_000)) for _ in range(2)]
        with pytest.raises(EngineFull, match="try again in") as full:
            engine.submit(Request([1, 2], GREEDY, max_new_tokens=1))
        assert 1 <= full.value.retry_after <= 60
        for generation in made:
            generation.cancel()
            async for _ in generation:
                pass
            assert generation.finish_reason == "cancelled"
        assert len((await listen(engine, Request([1, 2], GREEDY, max_new_tokens=3))).tokens) == 3

    asyncio.run(main())


class Slow(LogitsProcessor):
    """Takes its time, and tells when it is called."""

    def __init__(self) -> None:
        self.called = threading.Event()

    def __call__(self, input_ids, scores):
        self.called.set()
        time.sleep(0.02)
        return scores


@pytest.mark.parametrize("when", ["waiting", "reading", "replying", "ended"])
def test_a_cancelled_request_leaves_within_a_step(started, when) -> None:
    engine = started(streams=1, prompt_tokens=64, pages=16)
    slow = Slow()
    blocker = Request([1, 2], GREEDY, max_new_tokens=1_000 if when == "waiting" else 1, processors=[slow])
    request = Request(prompt(900), GREEDY, max_new_tokens=1 if when == "ended" else 100, processors=[slow])

    async def main() -> None:
        first = engine.submit(blocker)
        generation = engine.submit(request)
        if when == "waiting":
            await asyncio.to_thread(slow.called.wait)
        elif when == "reading":
            while not 0 < generation.progress < 900:
                await asyncio.sleep(0)
        else:
            async for _ in generation:
                break
        before = engine.steps
        generation.cancel()
        generation.cancel()
        async for _ in generation:
            pass
        assert engine.steps <= before + 2
        assert generation.finish_reason == ("length" if when == "ended" else "cancelled")
        first.cancel()

    asyncio.run(main())
    engine.close()
    assert engine.statistics().pages_used == 0


@needs_kernels
@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("budget", [1, 7, 20])
def test_the_budget_is_hard(drafts, budget) -> None:
    """With drafts too; what follows is the model's own."""
    request = Request(prompt(9), GREEDY, max_new_tokens=40, reasoning=Reasoning(CLOSING, is_closed, budget))
    (heard,) = serve(Audited(MODEL, settings(drafts=Drafts(drafts))), request)
    free = alone(MODEL, Request(prompt(9), GREEDY, max_new_tokens=40)).reply
    assert CLOSING[-1] not in free[:budget]
    assert heard.tokens[:budget] == free[:budget] and tuple(heard.tokens[budget : budget + 3]) == CLOSING
    assert heard.tokens == alone(MODEL, request).reply


@needs_kernels
@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("at", [0, 6])
def test_answer_now(started, drafts, at) -> None:
    """Closes the reasoning once; a reply that has none, or has closed it, goes on as it was."""
    engine = started(drafts=Drafts(drafts))
    engine.waits_for_readers = True
    thinks = Request(prompt(9), GREEDY, max_new_tokens=60, reasoning=Reasoning(CLOSING, is_closed))
    answers = Request(prompt(9), GREEDY, max_new_tokens=60)
    closed = Request(prompt(9), GREEDY, max_new_tokens=60, reasoning=Reasoning(CLOSING, lambda reply: True))

    async def main() -> list[Heard]:
        heard = [await listen(engine, request, close_at=at) for request in (thinks, answers, closed)]
        again = await listen(engine, thinks)
        again.generation.end_reasoning()  # nothing runs any more
        return [*heard, again]

    thought, *others = asyncio.run(main())
    (where,) = (i for i in range(58) if tuple(thought.tokens[i : i + 3]) == CLOSING)
    assert where >= at
    assert thought.tokens == alone(MODEL, thinks, where).reply
    assert len(thought.tokens) == 60
    for each in others:
        assert each.tokens == alone(MODEL, answers).reply


def test_log_probabilities_of_the_prompt(started) -> None:
    """Those of a forward pass, whatever is cached; and nothing else with no new token."""
    engine = started(prompt_tokens=64)
    ids = prompt(1_024)
    with torch.no_grad():
        logits = MODEL(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)

    async def main() -> None:
        await listen(engine, Request(ids[:500], GREEDY, max_new_tokens=2))
        for new, length in ((0, 1_024), (3, 400), (0, 1)):
            heard = await listen(engine, Request(ids[:length], GREEDY, max_new_tokens=new, prompt_logprobs=2))
            generation = heard.generation
            assert (len(heard.tokens), generation.finish_reason, generation.cached_tokens) == (new, "length", 0)
            first, *others = generation.prompt_logprobs or []
            assert first is None and [each.id for each in others if each] == ids[1:length]
            for at, each in enumerate(others):
                assert each is not None and each.logprob == pytest.approx(float(logits[at, ids[at + 1]]), abs=1e-4)
                assert [value for _, value in each.top] == pytest.approx(logits[at].topk(2).values.tolist(), abs=1e-4)

    asyncio.run(main())


class Fails(LogitsProcessor):
    def __call__(self, input_ids, scores):
        raise KeyError("no such state")


def test_an_error_of_a_request_is_its_own(started) -> None:
    engine = started()

    def broken(reply: Any) -> bool:
        raise KeyError("no such tag")

    bad = Request([5], GREEDY, max_new_tokens=9, processors=[Fails()])
    worse = Request([5], GREEDY, max_new_tokens=500, reasoning=Reasoning([9], broken))
    good = Request([3, 4], GREEDY, max_new_tokens=9)

    async def main() -> list[Heard]:
        return list(await asyncio.gather(listen(engine, bad), listen(engine, worse, close_at=1), listen(engine, good)))

    first, second, third = asyncio.run(main())
    for each in (first, second):
        assert each.generation.finish_reason == "error" and isinstance(each.generation.error, KeyError)
    assert third.generation.error is None and third.tokens == alone(MODEL, good).reply


@pytest.mark.parametrize("failures, ends", [(1, "length"), (2, "error")])
@pytest.mark.parametrize("reading", [True, False])
def test_a_model_that_fails(monkeypatch, failures, ends, reading) -> None:
    """Once: it is tried again. Twice: those whose step it was end, and the engine goes on."""
    left = []

    class Interrupted(Watched):
        def step(self, batch):
            if left and (batch.prompts > 0) == reading and len(left) <= failures:
                left.append(1)
                raise RuntimeError("out of memory")
            return super().step(batch)

    use_executor(monkeypatch, lambda *given: Interrupted(executor_for(*given)))
    engine = Audited(MODEL, settings())
    request = Request(prompt(100), GREEDY, max_new_tokens=20)

    async def main() -> tuple[Heard, Heard]:
        await listen(engine, request)
        left.append(1)
        return await listen(engine, request), await listen(engine, request)

    engine.start()
    broken, after = asyncio.run(main())
    engine.close()
    assert broken.generation.finish_reason == ends and (ends == "length" or "memory" in str(broken.generation.error))
    assert after.tokens == alone(MODEL, request).reply
    assert ends == "error" or broken.tokens == after.tokens


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_engine_leaves_nobody_waiting(monkeypatch) -> None:
    engine = ModelEngine(MODEL, settings())

    async def main() -> Heard:
        waiting = asyncio.ensure_future(listen(engine, Request([1, 2], GREEDY, max_new_tokens=900)))
        await asyncio.sleep(0.05)
        monkeypatch.setattr(engine, "_deliver", None)
        heard = await waiting
        with pytest.raises(EngineClosed):
            engine.submit(Request([1], GREEDY, max_new_tokens=1))
        return heard

    engine.start()
    heard = asyncio.run(main())
    engine.close()
    engine.audit()
    assert heard.generation.finish_reason == "error" and isinstance(heard.generation.error, TypeError)


@pytest.mark.parametrize(
    "drain, timeout, ends", [(True, None, "length"), (True, 0.05, "cancelled"), (False, None, "cancelled")]
)
def test_closing(drain, timeout, ends) -> None:
    engine = ModelEngine(MODEL, settings())
    new = 20 if ends == "length" else 900
    with pytest.raises(RuntimeError, match="started before"):
        engine.start()
        engine.start()

    async def main() -> None:
        made = [engine.submit(Request([1, 2, n], GREEDY, max_new_tokens=new, processors=[Slow()])) for n in range(6)]
        await asyncio.to_thread(engine.close, drain, timeout)
        for generation in made:
            async for _ in generation:
                pass
            assert generation.finish_reason == ends
        with pytest.raises(EngineClosed):
            engine.submit(Request([1], GREEDY, max_new_tokens=1))

    asyncio.run(main())
    engine.close()
    engine.audit()


def test_freed_memory_goes_back_once_nothing_has_run_for_a_while(started, monkeypatch) -> None:
    """Once, whenever that is; the next request is answered as the first one was."""
    given: list[int] = []
    monkeypatch.setattr("axk1.engine.engine.give_back_memory", lambda: given.append(1))
    monkeypatch.setattr("axk1.engine.engine.REST", 0.2)
    engine, request = started(), Request([1, 2], GREEDY, max_new_tokens=20, processors=[Slow()])

    async def ask() -> tuple[list[int], int]:
        heard = await listen(engine, request)
        return heard.tokens, len(given)

    first, before = asyncio.run(ask())
    time.sleep(0.6)
    assert len(given) == before + 1
    assert asyncio.run(ask()) == (first, before + 1)


def test_a_reader_gets_all_that_came_meanwhile_at_once(started) -> None:
    """And a reader whose loop is gone disturbs nobody."""
    engine = started()

    async def slow() -> None:
        generation = engine.submit(Request([1, 2], GREEDY, max_new_tokens=50, top_logprobs=1))
        while generation.finish_reason is None:
            await asyncio.sleep(0.01)
        chunks = [chunk async for chunk in generation]
        assert [len(chunk.tokens) for chunk in chunks] == [50] == [len(chunk.logprobs or ()) for chunk in chunks]

    async def gone() -> Generation:
        return engine.submit(Request([1, 2], GREEDY, max_new_tokens=900))

    left = asyncio.run(gone())
    asyncio.run(slow())
    wake([left])
    assert left.max_new_tokens == 900


@pytest.mark.parametrize("interval", [0.0, 60.0])
def test_a_reader_is_told_of_the_first_token_of_the_end_and_else_in_turns(started, interval) -> None:
    engine = started(stream_interval=interval)

    async def main() -> list[int]:
        generation = engine.submit(Request(prompt(8), GREEDY, max_new_tokens=200))
        return [len(chunk.tokens) async for chunk in generation]

    sizes = asyncio.run(main())
    assert sum(sizes) == 200
    assert len(sizes) <= 2 if interval else len(sizes) > 2


def test_a_short_prompt_passes_a_long_one(started) -> None:
    """While the long one goes on as well."""
    engine = started(prompt_tokens=64, streams=3)
    long, short = Request(prompt(900), GREEDY, max_new_tokens=1), Request(prompt(60, 1), GREEDY, max_new_tokens=1)

    async def main() -> int:
        engine.permits = threading.Semaphore(1)
        first = engine.submit(long)
        while not first.progress:
            await asyncio.sleep(0)
        before, second = engine.steps, engine.submit(short)
        engine.permits.release(100)
        async for _ in second:
            pass
        steps, others = engine.ended[second]
        assert others and others[0] > 64  # the long one has not ended
        return steps - before

    if engine.exact:
        assert asyncio.run(main()) <= 6


def test_the_oldest_prompt_is_not_starved() -> None:
    """At least half of every step is its own, the rest goes to the shortest."""
    engine = Audited(MODEL, settings(prompt_tokens=64, prefixes=False))
    if not engine.exact:
        pytest.skip("no exact kernels here")
    from crowd import batch

    lengths = [300, 200, 20, 30]
    sequences = [batch.Sequence(prompt(length, length), GREEDY, max_new_tokens=1) for length in lengths]
    for sequence in sequences:
        engine.loop.add(sequence)
    engine.loop.prompts.admit(0, lambda: False)
    assert [size for _, size in engine.loop.prompts.pieces()] == [32, 20, 12]
    engine.loop.step()
    assert [s.cached for s in sequences] == [32, 0, 20, 12]
    engine.loop.step()
    assert [s.cached for s in sequences] == [64, 14, 20, 30]
    while len(engine.loop):
        engine.loop.step()
    assert all(len(s.reply) == 1 for s in sequences)


@needs_kernels
def test_prompts_and_drafts_take_turns(monkeypatch) -> None:
    """While drafts are made; replies are no slower for a prompt that arrives than its steps are long."""
    steps: list[tuple[int, int]] = []

    class Noted(Watched):
        def step(self, batch):
            steps.append((batch.prompts, len(batch.cached) - batch.prompts))
            return super().step(batch)

        def speculate(self, module, hidden, trunk, count):
            steps.append((0, len(trunk.cached)))
            return super().speculate(module, hidden, trunk, count)

    use_executor(monkeypatch, lambda *given: Noted(executor_for(*given)))
    engine = Audited(MODEL, settings(drafts=Drafts(2), prompt_tokens=64, prefixes=False))
    requests = [
        Request(prompt(length, length), GREEDY, max_new_tokens=new, top_logprobs=0, drafts=length < 900)
        for length, new in ((20, 300), (900, 5))
    ]

    async def main() -> list[Heard]:
        first = asyncio.ensure_future(listen(engine, requests[0]))
        await asyncio.sleep(0.05)
        steps.clear()
        return [await listen(engine, requests[1]), await first]

    engine.start()
    heard = asyncio.run(main())
    engine.close()
    reading = [at for at, (prompts, _) in enumerate(steps) if prompts]
    assert all(steps[at] == (1, 0) and steps[at + 1] == (0, 1) for at in reading[1:-1])
    for each in heard:
        expected = alone(MODEL, each.generation.request)
        assert each.tokens == expected.reply and each.logprobs == expected.logprobs


def test_pages_where_nobody_says_how_many(monkeypatch) -> None:
    """Twice what the streams can fill, or half of the free memory."""
    from axk1.engine import settings as module

    assert default_pages(MODEL, 4) == 2 * 4 * pages_of(1_024)
    page = Audited(MODEL, settings()).loop.pool.page_bytes  # pyright: ignore[reportOptionalMemberAccess]
    monkeypatch.setattr(module, "_free_bytes", lambda device: 21 * page)
    assert default_pages(MODEL, 4) == 10
    monkeypatch.setattr(module, "_free_bytes", lambda device: 0)
    assert default_pages(MODEL, 4) == 1


def test_a_model_that_is_not_ours() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    llama: Any = LlamaForCausalLM(
        LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    ).eval()
    requests = [Request(prompt(length), GREEDY, max_new_tokens=5) for length in (3, 100, 100)]
    engine = ModelEngine(llama, Settings())
    assert not engine.exact and engine.tree is None
    for request, heard in zip(requests, serve(engine, *requests), strict=True):
        ids = torch.tensor([list(request.prompt)])
        expected = llama.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
        assert heard.tokens == expected[0, len(request.prompt) :].tolist()
