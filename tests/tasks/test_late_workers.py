"""Workers that are looked for when they are needed."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.errors import EngineClosedError
from tasks.late_workers import LateWorkers
from tests.tasks.fakes import FakeWorkers


class Place:
    """Where workers are, with what happened to it."""

    def __init__(self) -> None:
        self.happened: list[str] = []

    @contextmanager
    def open(self) -> Iterator[FakeWorkers]:
        self.happened.append("opened")
        yield FakeWorkers()
        self.happened.append("left")


def test_they_are_opened_when_they_start_and_left_with_the_context() -> None:
    place = Place()
    with LateWorkers(place.open) as workers:
        assert workers.each() == ()
        assert (workers.totals().requests, workers.waiting_for) == (0, None)
        assert place.happened == []
        workers.start()
        workers.start()
        [worker] = workers.each()
        assert (worker.label, workers.stage) == (FakeWorkers.label, None)
    assert place.happened == ["opened", "left"]


def test_closed_ones_are_not_opened() -> None:
    place = Place()
    with LateWorkers(place.open) as workers:
        workers.close()
        with pytest.raises(EngineClosedError):
            workers.start()
    assert place.happened == []
