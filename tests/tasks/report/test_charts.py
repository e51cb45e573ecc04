"""Axes, areas and the tree as numbers."""

import pytest

from tasks.report.charts import charts, icicle, time_scale
from tasks.report.facts import PromptTree, SharedNode
from tasks.storage.step_curve import CurvePoint, StepCurve


def test_time_has_a_unit() -> None:
    assert [time_scale(seconds)[1] for seconds in (10, 600, 20_000)] == ["s", "min", "h"]


def test_a_curve_of_one_point_is_no_chart() -> None:
    assert charts(StepCurve("run", points=(CurvePoint(1.0, 1, 5, 0, 0, 0, 1.0),))) == ()


def test_areas_stand_on_each_other() -> None:
    """A second of 100 prefilled tokens, then one of 50 and 50 decoded: 1,000 units are 100 tokens/s."""
    points = (CurvePoint(1.0, 1, 100, 0, 0, 2**20, 1.0), CurvePoint(2.0, 3, 150, 0, 50, 2**21, 2.0))
    speeds, batch, memory = charts(StepCurve("run", 2.0, 200, 2**22, points))
    decode, prefill = speeds.areas
    assert (
        decode.path
        == "M0.0 1000.0L500.0 1000.0L500.0 500.0L1000.0 500.0L1000.0 1000.0L500.0 1000.0L500.0 1000.0L0.0 1000.0Z"
    )
    assert prefill.path == "M0.0 0.0L500.0 0.0L500.0 0.0L1000.0 0.0L1000.0 500.0L500.0 500.0L500.0 1000.0L0.0 1000.0Z"
    assert [tick.text for tick in speeds.x_ticks] == ["0", "0.5", "1", "1.5", "2"]
    assert [tick.at for tick in speeds.x_ticks] == [0, 25, 50, 75, 100]
    assert batch.budget is not None
    assert (batch.budget.at, batch.areas[0].path[:17]) == (80.0, "M0.0 600.0L500.0 ")
    assert memory.budget is not None
    assert (memory.budget.at, memory.y_ticks[-1].text) == (80.0, "5")


def test_a_budget_far_above_does_not_flatten_what_is_used() -> None:
    points = (CurvePoint(1.0, 1, 100, 0, 0, 2**20, 1.0), CurvePoint(2.0, 3, 150, 0, 50, 2**20, 2.0))
    memory = charts(StepCurve("run", 2.0, 0, 2**31, points))[2]
    assert memory.budget is not None
    assert memory.budget.text == "budget 2,048 MiB, far above"
    assert memory.budget.at == pytest.approx(80)
    assert memory.y_ticks[-1].text == "1"


def test_a_tree_is_drawn_to_scale() -> None:
    tree = PromptTree(10, 100, (SharedNode(0, 10, 0, 40), SharedNode(5, 5, 40, 90)), (100.0, 50.0), (40.0, 90.0))
    drawn = icicle(tree)
    assert drawn is not None
    assert [(box.x, box.y, box.width, box.height) for box in drawn.boxes] == [(0, 0, 1000, 400), (500, 400, 500, 500)]
    assert drawn.boxes[1].title == "5 requests share tokens 40 to 90: 50 computed for 250 as written"
    assert drawn.lengths == "M0 0L0.0 1000.0L500.0 1000.0L500.0 500.0L1000.0 500.0L1000 0Z"
    assert drawn.shared == "M0 0L0.0 400.0L500.0 400.0L500.0 900.0L1000.0 900.0L1000 0Z"
    assert icicle(PromptTree()) is None
    assert icicle(PromptTree(1, 100, (), (100.0,), (0.0,))) is None, "a request alone shares nothing"
