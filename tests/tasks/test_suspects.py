"""Which rows are asked alone after a death, and how many deaths that costs."""

from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.suspects import Suspects

TRIES = 2


def find(rows: int, killers: set[int], step: int = 10**9) -> tuple[list[tuple[int, ...]], int, list[int]]:
    """What was asked, how often the engine died, and who was found; `step` rows are in the engine at once."""
    suspects, asked, deaths, ended = Suspects(range(rows), TRIES), [], 0, set[int]()
    while (group := suspects.next()) is not None:
        asked.append(group)
        assert not ended & {*group}, "what has ended is not asked again"
        for first in range(0, len(group), step):
            if killers & {*group[first : first + step]}:
                deaths += 1
                suspects.died([row for row in group if row not in ended])
                break
            ended |= {*group[first : first + step]}
        else:
            suspects.ended()
    assert ended == {*range(rows)} - killers
    return asked, deaths, suspects.killers


def test_the_later_half_is_asked_first_and_blames_the_earlier_one_by_ending_well() -> None:
    asked, deaths, killers = find(8, {0})
    assert asked == [(0, 1, 2, 3, 4, 5, 6, 7), (4, 5, 6, 7), (2, 3), (1,), (0,), (0,)]
    assert (deaths, killers) == (1 + TRIES, [0])


def test_the_latest_row_costs_a_death_a_halving() -> None:
    asked, deaths, killers = find(8, {7})
    assert asked == [(0, 1, 2, 3, 4, 5, 6, 7), (4, 5, 6, 7), (0, 1, 2, 3), (6, 7), (4, 5), (7,), (6,), (7,)]
    assert (deaths, killers) == (3 + TRIES, [7])


def test_two_that_kill_together_alone_are_nobodys_fault() -> None:
    suspects = Suspects(range(4), TRIES)
    assert suspects.next() == (0, 1, 2, 3)
    suspects.died((0, 1, 2, 3))
    while suspects.next() is not None:
        suspects.ended()
    assert suspects.killers == []


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))), st.integers(1, 300))
def test_one_killer_costs_at_most_log2_deaths(drawn: tuple[int, int], step: int) -> None:
    rows, killer = drawn
    _, deaths, killers = find(rows, {killer}, step)
    assert killers == [killer]
    assert deaths <= ceil(log2(rows)) + TRIES


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))), st.integers(1, 70))
def test_all_killers_are_found_and_no_others(drawn: tuple[int, set[int]], step: int) -> None:
    rows, killers = drawn
    _, deaths, found = find(rows, killers, step)
    assert {*found} == killers
    assert deaths <= len(killers) * (ceil(log2(rows)) + TRIES)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_table_of_killers(rows: int) -> None:
    assert find(rows, {*range(rows)})[2] == [*reversed(range(rows))]
