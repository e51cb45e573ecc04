"""What is imported without collections of garbage: none meanwhile, all as before behind it, whatever happens."""

import gc
import importlib

import pytest

from engine.process.importing import importing


class Cycle:
    """Counts in `gone` how many were collected."""

    gone = 0

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        Cycle.gone += 1


def test_nothing_is_collected_meanwhile_and_all_that_comes_later_is() -> None:
    frozen = gc.get_freeze_count()
    with pytest.raises(ModuleNotFoundError), importing():
        importlib.import_module("no_module_of_this_name")
    assert gc.isenabled()
    with importing():
        assert not gc.isenabled()
        kept = [[] for _ in range(100)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(kept)
    before = Cycle.gone
    Cycle()
    gc.collect()
    assert Cycle.gone == before + 1
