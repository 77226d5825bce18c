"""The tree of kept prompts: what it holds, for whom, and what goes first."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import small_model

from axk1.engine.prefix import PrefixTree
from axk1.generation.batch import Sequence
from axk1.generation.pages import PAGE, Pool, PoolFull
from axk1.generation.sampling import GREEDY

CONFIG = small_model(num_nextn_predict_layers=1).config


def pool_and_tree(limit: int | None = None, unit: int = 1) -> tuple[Pool, PrefixTree]:
    pool = Pool(CONFIG, torch.float32, torch.device("cpu"), limit, poison=True)
    return pool, PrefixTree(pool, unit)


def opened(pool: Pool, tokens: list[int], tenant: str | None = "", drafting: bool = False) -> Sequence:
    sequence = Sequence(tokens, GREEDY, max_new_tokens=5, tenant=tenant)
    sequence.table, sequence.drafting = pool.open(), drafting
    return sequence


def content(sequence: Sequence) -> torch.Tensor:
    """What its pages are to hold, ``[2, L]``: in the trunk what all tokens up to each one say, in the module's layer
    the one after it as well."""
    ids, so_far, trunk = sequence.tokens, 0, []
    for token in ids:
        so_far = hash((so_far, token)) % 9_973
        trunk.append(so_far)
    return torch.tensor([trunk, [*map(sum, zip(trunk[:-1], ids[1:], strict=True)), -1]], dtype=torch.float32)


def read(pool: Pool, sequence: Sequence, tokens: int) -> None:
    """As the loop does."""
    assert sequence.table is not None
    pool.grow(sequence.table, sequence.cached + tokens)
    trunk, module = content(sequence)
    for at in range(sequence.cached, sequence.cached + tokens):
        row = sequence.table.pages[at // PAGE][:, at % PAGE]
        row[0, 0], row[-1, 0] = trunk[at], module[at] if sequence.drafting else -2.0
    sequence.cached += tokens
    sequence.module = sequence.cached if sequence.drafting else 0


def check_content(sequence: Sequence) -> None:
    """Whatever is in its pages is what it would have written, the module's layer where it drafts."""
    assert sequence.table is not None
    if sequence.cached:
        held = torch.cat(sequence.table.pages, dim=1)[:, : sequence.cached, 0]
        expected = content(sequence)[:, : sequence.cached]
        assert torch.equal(held[0], expected[0]), "pages of another prompt"
        assert not sequence.drafting or torch.equal(held[-1], expected[1]), "the module saw another token"


def check_order(tree: PrefixTree) -> None:
    """Children come before their parents, so that what goes first has none."""
    seen = set()
    for node in tree._order:
        for variants in node.children.values():
            assert all(child in seen for child in variants.values())
        seen.add(node)


def leave(pool: Pool, sequence: Sequence) -> None:
    assert sequence.table is not None
    pool.close(sequence.table)
    sequence.table = None


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), unit=st.sampled_from([1, 1, 2]), limit=st.sampled_from([None, 14]))
def test_any_order_of_events(seed, unit, limit) -> None:
    """Sequences of few different pages join, read, leave, while pages are evicted: books, contents, order."""
    chance, (pool, tree) = random.Random(seed), pool_and_tree(limit, unit)
    bodies = [[n] * PAGE for n in range(3)]
    running: list[Sequence] = []
    for _ in range(60):
        event = chance.random()
        if event < 0.35 and len(running) < 4:
            tokens = [t for _ in range(chance.randrange(4)) for t in chance.choice(bodies)] + [chance.randrange(3)]
            sequence = opened(pool, tokens, chance.choice(["", "a", None]), chance.random() < 0.5)
            tree.find(sequence)
            missing = pool.missing(5)
            if missing > pool.spare:
                leave(pool, sequence)
                continue
            tree.evict(missing)
            pool.promise(sequence.table, sequence.end)  # pyright: ignore[reportArgumentType]
            running.append(sequence)
        elif event < 0.8 and running:
            sequence = chance.choice(running)
            tree.find(sequence)
            left = sequence.history.prompt - sequence.cached
            if left:
                step = min(left, unit * PAGE if unit > 1 else chance.choice([1, 30, PAGE, 2 * PAGE]))
                read(pool, sequence, step)
                tree.store(sequence)
        elif event < 0.95 and running:
            leave(pool, running.pop(chance.randrange(len(running))))
        else:
            tree.evict(chance.randrange(3))
        pool.audit([s.table for s in running if s.table is not None])
        check_order(tree)
        for sequence in running:
            check_content(sequence)
            assert sequence.found % (unit * PAGE) == 0 and sequence.cached <= sequence.history.prompt
    for sequence in running:
        leave(pool, sequence)
    assert pool.in_use == pool.spare == len(tree)
    tree.clear()
    assert (pool.in_use, pool.spare, len(tree), tree.tenants) == (0, 0, 0, 0)


def kept(pool: Pool, tree: PrefixTree, tokens: list[int], tenant: str = "") -> None:
    sequence = opened(pool, tokens, tenant)
    tree.find(sequence)
    read(pool, sequence, len(tokens) - sequence.cached)
    tree.store(sequence)
    leave(pool, sequence)


def found(pool: Pool, tree: PrefixTree, tokens: list[int], tenant: str = "") -> int:
    sequence = opened(pool, tokens, tenant)
    tree.find(sequence)
    leave(pool, sequence)
    return sequence.found // PAGE


def test_those_used_last_go_last() -> None:
    """A page only after all that come after it."""
    pool, tree = pool_and_tree()
    one, two, three = ([n] * 3 * PAGE + [0] for n in (1, 2, 3))
    for tokens in (one, two, three):
        kept(pool, tree, tokens)
    assert found(pool, tree, one) == 3
    tree.evict(4)
    assert [found(pool, tree, tokens) for tokens in (one, two, three)] == [3, 0, 2]
    assert pool.in_use == 5


def test_pages_in_use_stay() -> None:
    pool, tree = pool_and_tree()
    tokens = [4] * 3 * PAGE + [0]
    kept(pool, tree, tokens)
    reader = opened(pool, tokens[: 2 * PAGE + 1])
    tree.find(reader)
    tree.evict(9)
    assert len(tree) == 2 == pool.in_use and pool.spare == 0
    check_content(reader)
    leave(pool, reader)
    assert pool.spare == 2


def test_two_that_read_the_same_end_with_the_same_pages() -> None:
    pool, tree = pool_and_tree()
    tokens = [4] * 2 * PAGE + [0]
    both = [opened(pool, tokens) for _ in range(2)]
    for sequence in both:
        read(pool, sequence, 2 * PAGE + 1)
    assert pool.in_use == 6
    for sequence in both:
        tree.store(sequence)
    assert pool.in_use == 4
    first, second = (s.table for s in both)
    assert first is not None and second is not None and first.addresses[:2] == second.addresses[:2]
    assert second.tensor.tolist() == [[page.data_ptr() for page in second.pages]]
    for sequence in both:
        check_content(sequence)


def test_nobody_is_given_what_belongs_to_none() -> None:
    pool, tree = pool_and_tree()
    sequence = opened(pool, [4] * 2 * PAGE, tenant=None)
    read(pool, sequence, 2 * PAGE)
    tree.store(sequence)
    assert len(tree) == 0 and tree.next_page(sequence) is None
    kept(pool, tree, [4] * 2 * PAGE, "a")
    assert found(pool, tree, [4] * 2 * PAGE, "a") == 1 and found(pool, tree, [4] * 2 * PAGE, "b") == 0


def test_books_that_are_wrong_are_found() -> None:
    pool, _ = pool_and_tree(limit=3)
    sequence = opened(pool, [4] * 100)
    read(pool, sequence, 100)
    with pytest.raises(RuntimeError, match="books are wrong"):
        pool.audit([])
    with pytest.raises(PoolFull):
        pool.promise(sequence.table, 4 * PAGE)  # pyright: ignore[reportArgumentType]
    leave(pool, sequence)
    pool.audit([])
