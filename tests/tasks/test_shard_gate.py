"""Shards side by side, and one alone."""

import threading
from collections.abc import Callable

import pytest

from engine.errors import EngineDeadError
from tasks.run_failed import EngineKeepsDyingError
from tasks.shard_gate import ShardGate

# Long enough for a thread to reach the place where it waits.
A_MOMENT = 0.1


def started(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(A_MOMENT)
    return thread


def test_one_that_is_alone_waits_for_those_inside_and_goes_before_those_that_come() -> None:
    gate, order = ShardGate(10), list[str]()

    def alone() -> None:
        with gate.alone():
            order.append("alone")

    def later() -> None:
        with gate.beside():
            order.append("later")

    with gate.beside():
        with gate.beside():
            order.append("side by side")
        threads = [started(alone), started(later)]
        assert all(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join(10)
    assert order == ["side by side", "alone", "later"]


def test_a_shard_that_is_alone_keeps_all_others_out() -> None:
    gate, order = ShardGate(10), list[str]()

    def other() -> None:
        with gate.alone():
            order.append("other")

    with gate.alone():
        thread = started(other)
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]


def test_deaths_count_in_a_row() -> None:
    gate = ShardGate(3)
    for _ in range(5):
        gate.died(EngineDeadError("gone"))
        gate.died(EngineDeadError("gone"))
        gate.worked()
    gate.died(EngineDeadError("gone"))
    gate.died(EngineDeadError("gone"))
    with pytest.raises(EngineKeepsDyingError, match=r"died 3 times in a row .* \(gone\)"):
        gate.died(EngineDeadError("gone"))
