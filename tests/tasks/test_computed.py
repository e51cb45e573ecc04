"""What workers say that they computed, added up over several of them."""

import pytest

from tasks.workers import Computed


def test_the_share_of_the_limit_is_that_of_all_steps() -> None:
    one, other = Computed(busy_seconds=4.0, limit_seconds=1.0), Computed(busy_seconds=6.0, limit_seconds=3.0)
    assert (one + other).limit_share == pytest.approx(0.4)
    assert (one + other - one).limit_share == pytest.approx(0.5)


@pytest.mark.parametrize(("busy", "limit"), [(0.0, 0.0), (5.0, 0.0), (5.0, 5.1)])
def test_what_steps_pass_is_no_limit(busy: float, limit: float) -> None:
    assert Computed(busy_seconds=busy, limit_seconds=limit).limit_share is None


def test_texts_that_go_on_are_those_of_all_workers_now() -> None:
    one, other = Computed(3, decode=9, going=(2, 7)), Computed(1, decode=4, going=(5,))
    assert (one + other).going == (2, 7, 5)
    assert (one + other - other).going == (2, 7, 5)
    assert (one + other - other).decode == 9
