"""What a run did over its time: few points however long it runs, whose sums lose nothing."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tasks.storage.output_folder import OutputFolder
from tasks.storage.step_curve import MAX_POINTS, CurvePoint, CurveRecorder, StepCurve, read_curve, write_curve


def point(number: int, kv_bytes: int = 0) -> CurvePoint:
    return CurvePoint(0.5 * number, number, 10 * number, number, 2 * number, kv_bytes, 0.25 * number)


@given(st.integers(2, 5 * MAX_POINTS))
def test_points_stay_few_and_end_with_the_last(count: int) -> None:
    recorder = CurveRecorder(StepCurve("run-000001-000000"))
    for number in range(1, count + 1):
        recorder.add(point(number, kv_bytes=number % 7))
    points = recorder.read(1.0).points
    assert len(points) <= MAX_POINTS
    assert (points[-1].prefill, points[-1].seconds) == (10 * count, 0.5 * count)
    assert max(one.kv_bytes for one in points) == max(number % 7 for number in range(1, count + 1))
    seconds = [one.seconds for one in points]
    assert seconds == sorted(set(seconds))
    assert count <= MAX_POINTS or len(points) > MAX_POINTS // 3


def test_what_computes_nothing_adds_no_point() -> None:
    recorder = CurveRecorder(StepCurve("run-000001-000000"))
    recorder.add(point(0))
    assert recorder.read(3.0).points == ()
    recorder.add(point(4))
    recorder.add(CurvePoint(9.0, 4, 40, 4, 8, 0, 1.0))
    assert recorder.read(9.0).points == (point(4),)


def test_a_curve_comes_back_and_another_runs_does_not(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    folder.staging.mkdir()
    curve = StepCurve("run-000002-abcdef", 2.5, 512, 2**24, (point(1), point(2)))
    assert read_curve(folder, curve.run_id) == StepCurve(curve.run_id)
    write_curve(folder, curve)
    assert read_curve(folder, curve.run_id) == curve
    assert read_curve(folder, "run-000003-abcdef") == StepCurve("run-000003-abcdef")
    folder.step_curve.write_text("half of a l")
    assert read_curve(folder, curve.run_id) == StepCurve(curve.run_id)


def test_steps_of_one_engine_are_told_late_and_all_counted() -> None:
    """Ten seconds of steps one behind the other, of which every other point says nothing and the next one twice."""
    points = tuple(CurvePoint(float(at), at, at, 0, 0, 0, 2.0 * (at // 2)) for at in range(2, 11))
    assert StepCurve("run", 12.0, points=points).computing_seconds == 10.0
    assert StepCurve("run", 12.0).computing_seconds == 0.0


def test_engines_that_join_add_no_time() -> None:
    """One engine for two seconds, and three more beside it for the other eight."""
    points = tuple(CurvePoint(float(at), at, at, 0, 0, 0, float(at if at <= 2 else 4 * at - 6)) for at in range(1, 11))
    assert StepCurve("run", 12.0, points=points).computing_seconds == 10.0
