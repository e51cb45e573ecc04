import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduling.block_pool import BlockPool, blocks_for


def test_one_run_where_one_fits_else_the_longest_ones() -> None:
    pool = BlockPool(10, block_size=4)
    first, second, third = pool.allocate(12), pool.allocate(8), pool.allocate(16)
    assert [table.runs for table in (first, second, third)] == [((0, 3),), ((3, 2),), ((5, 4),)]
    pool.free(first)
    pool.free(third)
    assert pool.allocate(18).runs == ((5, 5),)
    assert pool.allocate(4).runs == ((0, 1),)
    assert pool.num_free == 2
    pool.free(second)
    assert pool.allocate(13).runs == ((1, 4),)
    assert pool.peak_used == 10


def test_slots_follow_the_runs_in_token_order() -> None:
    pool = BlockPool(6, block_size=4)
    tables = [pool.allocate(4) for _ in range(6)]
    for index in (1, 2, 4):
        pool.free(tables[index])
    table = pool.allocate(12)
    assert table.runs == ((1, 2), (4, 1))
    assert table.slots(0, 12) == [(4, 12), (16, 20)]
    assert table.slots(7, 9) == [(11, 12), (16, 17)]
    assert table.slots(3, 3) == []


def test_a_table_is_freed_once() -> None:
    pool = BlockPool(4, block_size=2)
    table = pool.allocate(5)
    assert pool.num_free == 1
    pool.free(table)
    assert (pool.num_free, table.runs) == (4, ())
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(table)


def test_a_table_grows_into_the_blocks_behind_it_and_then_elsewhere() -> None:
    pool = BlockPool(10, block_size=4)
    tables = [pool.allocate(4) for _ in range(10)]
    for index in (0, 4, 5, 8):
        pool.free(tables[index])
    table = tables[3]
    pool.extend(table, 1)
    assert (table.runs, pool.num_free, table.num_tokens) == (((3, 2),), 3, 8)
    pool.extend(table, 3)
    assert (table.runs, pool.num_free) == (((3, 3), (0, 1), (8, 1)), 0)
    assert (pool.peak_used, table.slots(7, 24)) == (10, [(19, 24), (0, 4), (32, 36)])
    with pytest.raises(AssertionError):
        pool.extend(table, 1)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_blocks_for_counts_the_last_one_too(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 4) == blocks
    assert blocks_for(np.array([tokens]), 4).tolist() == [blocks]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 20)), max_size=60))
def test_no_block_has_two_owners_and_all_come_back(actions: list[tuple[int, int]]) -> None:
    pool = BlockPool(24, block_size=3)
    held = []
    for tokens, victim in actions:
        if blocks_for(tokens, 3) <= pool.num_free:
            held.append(pool.allocate(tokens))
        elif held:
            pool.free(held.pop(victim % len(held)))
            if held and pool.num_free:
                pool.extend(held[victim % len(held)], 1 + victim % pool.num_free)
        blocks = [block for table in held for first, count in table.runs for block in range(first, first + count)]
        assert len(blocks) == len(set(blocks)) == pool.num_used
    for table in held:
        pool.free(table)
    assert pool.allocate(72).runs == ((0, 24),)
