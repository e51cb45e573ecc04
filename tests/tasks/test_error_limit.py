"""Error rows that end a run: at the first, or at too many; what is committed stays, and the same command continues."""

import pytest

from engine.errors import UserError
from tasks.error_limit import LEAST_ROWS, ErrorLimit
from tasks.run_failed import ErrorRowError, TooManyErrorsError
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import outcomes, run_steps


def rows(count: int, unlucky: set[int]) -> list[dict[str, str]]:
    return [{"id": f"r{i:02}", "text": f"row {i:03}{' unlucky' if i in unlucky else ''}"} for i in range(count)]


def test_the_first_error_row_ends_a_run_that_allows_none(job_of: JobMaker, engine: FakeWorkers) -> None:
    engine.step_requests = 1
    job = job_of(rows(9, {4}), source={"id": "id"}, on_error="fail")
    with pytest.raises(ErrorRowError, match=r"^row 'r04': NON_FINITE: not finite \(on_error: fail\)$"):
        run_steps(job)
    [checkpoint] = read_manifests(OutputFolder(job.output_folder))
    assert (checkpoint.is_checkpoint, checkpoint.requests, checkpoint.errors) == (True, 4, 0)
    engine.works.clear()
    engine.heals = True
    run_steps(job)
    assert outcomes(job) == {f"r{i:02}": "ok" for i in range(9)}
    assert len(engine.scored) == 5, "the row that ended the run is asked again, those before it are not"


def test_too_many_errors_end_a_run_and_the_same_command_continues(job_of: JobMaker, engine: FakeWorkers) -> None:
    job = job_of(rows(200, {*range(0, 200, 4)}), source={"id": "id"}, max_error_rate=0.2)
    said = r"26 of 101 rows scored so far are errors, 25\.7% .*; max_error_rate allows 20\.0%"
    with pytest.raises(TooManyErrorsError, match=said):
        run_steps(job)
    [checkpoint] = read_manifests(OutputFolder(job.output_folder))
    assert (checkpoint.requests, checkpoint.errors) == (101, 26)
    engine.works.clear()
    run_steps(job_of(rows(200, {*range(0, 200, 4)}), source={"id": "id"}, max_error_rate=0.3))
    assert len(engine.scored) == 99
    assert [*outcomes(job).values()].count("NON_FINITE") == 50


def test_rows_that_were_rejected_count_as_if_they_lay_among_the_others(job_of: JobMaker) -> None:
    limit = ErrorLimit(job_of(rows(1, set()), max_error_rate=0.3), rows=1000, rejected=200, pending=800)
    limit.check_rejected()
    for _ in range(2 * LEAST_ROWS):
        limit.count(1, is_error=False)
    assert limit.rate == pytest.approx(0.2)
    limit.count(20, is_error=True)
    assert limit.rate == pytest.approx(0.2 + 0.8 * 20 / 220)
    with pytest.raises(TooManyErrorsError, match=r"50 of 250 rows .* 36\.0%"):
        limit.count(30, is_error=True)
    with pytest.raises(TooManyErrorsError, match=r"^31\.0% of the rows were rejected; max_error_rate allows 30\.0%$"):
        ErrorLimit(job_of(rows(1, set()), max_error_rate=0.3), rows=100, rejected=31).check_rejected()


def test_few_rows_say_nothing_until_they_are_all(job_of: JobMaker) -> None:
    limit = ErrorLimit(job_of(rows(1, set()), max_error_rate=0.5), rows=4, pending=4)
    for _ in range(3):
        limit.count(1, is_error=True)
    with pytest.raises(TooManyErrorsError, match="4 of 4 rows"):
        limit.count(1, is_error=True)


@pytest.mark.parametrize(("key", "value"), [("on_error", "stop"), ("max_error_rate", 2), ("max_engine_deaths", 0)])
def test_other_values_are_refused(job_of: JobMaker, key: str, value: object) -> None:
    with pytest.raises(UserError, match=key):
        job_of(rows(1, set()), **{key: value})
