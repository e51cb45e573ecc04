"""The flow against one Prefect server: what is scored, retried, published and shown."""

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.errors import UserError
from engine.loop.engine import Engine
from engine.request import RequestOutput
from engine.stages import checkpoint
from flows import score as score_module
from flows.progress import Progress, watch
from flows.report import RunReport
from flows.score import ShardsFailedError, artifact_key, score
from flows.workers import workers_from
from tasks.in_process import InProcess
from tasks.infer import infer_shard
from tasks.job.job_file import parse_job
from tasks.query import query
from tasks.run_failed import ErrorRowError, RunFailedError, TooManyErrorsError
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_record import RunRecord, read_records
from tests.tasks.fakes import FakeWorkers

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("prefect_server")


def run(job: dict[str, Any]) -> RunReport:
    return score(parse_job(job, "test"))


def answer(job: dict[str, Any], sql: str) -> list[Any]:
    with query(Path(job["output"]), sql) as result:
        rows: list[Any] = result.table().to_pylist()
        return rows


class NoWorkers(FakeWorkers):
    """Workers that are not to be asked for anything."""

    def start(self) -> None:
        pytest.fail("the model was loaded for nothing")

    def submit(self, *_: object, **__: object) -> "Future[list[RequestOutput]]":
        pytest.fail("a shard ran twice")


def records_of(job: dict[str, Any]) -> list[RunRecord]:
    return read_records(OutputFolder(Path(job["output"])))


def test_every_row_ends_once_and_a_second_run_scores_nothing(small_job: dict[str, Any]) -> None:
    seen: list[Progress] = []
    with watch(seen.append):
        first = run(small_job)
    assert (first.published.rows, first.published.results, first.published.errors) == (21, 20, 1)
    assert first.scored_rows == 20
    assert sum(int(rows) for _, rows in first.published.answers[0].rows) == 20
    assert first.published.error_types == (("EMPTY_PROMPT", 1),)
    assert [p.stage for p in seen][:3] == ["reading rows", "finding equal requests", "planning"]
    assert max(p.rows_done for p in seen) == 21
    assert len(answer(small_job, "select custom_id from results union select custom_id from errors")) == 21
    [share] = answer(small_job, "select limit_share from runs")
    assert share["limit_share"] is None or 0 < share["limit_share"] <= 1, "a limit that is passed is none"

    with workers_from(lambda _: nullcontext(NoWorkers())):
        second = run(small_job)
    assert second.scored_rows == 0
    assert second.published.answers == first.published.answers
    assert "nothing" in dict(second.facts())["scored now"]
    assert answer(small_job, "select limit_share from runs")[1] == {"limit_share": None}


def test_text_is_generated(small_job: dict[str, Any]) -> None:
    small_job["task"] = {"type": "generate"}
    small_job["sampling"] = {"max_tokens": 3, "ignore_eos": True}
    report = run(small_job)
    assert report.published.results == 20
    assert report.published.answers[0].rows
    [counts] = answer(small_job, "select min(completion_tokens) as low, max(completion_tokens) as high from results")
    assert counts == {"low": 3, "high": 3}
    for _, text in report.published.answers[0].rows:
        assert str(text) not in report.markdown(), "generated text may quote a prompt, and the page is Prefect's"


class Starting(FakeWorkers):
    """Workers that note what the run does when they begin to load."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[str] = []
        self.stage_of_run = ""

    def hear(self, progress: Progress) -> None:
        self.stage_of_run = progress.stage

    def start(self) -> None:
        self.stages.append(self.stage_of_run)


def stages_of_loads(job: dict[str, Any], **options: bool) -> list[str]:
    starting = Starting()
    with watch(starting.hear), workers_from(lambda _: nullcontext(starting)):
        score(parse_job(job, "test"), **options)
    return starting.stages


def test_a_model_loads_while_the_first_rows_of_a_folder_are_read(small_job: dict[str, Any]) -> None:
    small_job["engine"]["max_num_batched_tokens"] = 256
    assert stages_of_loads(small_job) == ["reading rows", "finding equal requests"]
    assert stages_of_loads(small_job, full=True) == ["finding equal requests"], "there are results"


@pytest.mark.parametrize("reason", ["what a load measures is not known", "a store may have all answers"])
def test_a_model_loads_behind_the_rows_that_are_read(
    reason: str, small_job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason.startswith("a store"):
        small_job["engine"]["max_num_batched_tokens"] = 256
        small_job["store"] = str(tmp_path / "store")
    else:
        monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    assert stages_of_loads(small_job) == ["finding equal requests"]


class Refusing(FakeWorkers):
    """Workers whose model turns out to be of no use when it is loaded."""

    def submit(self, *_: object, **__: object) -> "Future[list[RequestOutput]]":
        raise UserError("model.path: no good")


def test_a_model_that_cannot_be_loaded_is_the_users_to_mend(small_job: dict[str, Any]) -> None:
    with (
        workers_from(lambda _: nullcontext(Refusing())),
        pytest.raises(UserError, match=r"^model\.path: no good$"),
    ):
        run(small_job)


@pytest.fixture
def many_shards(small_job: dict[str, Any]) -> dict[str, Any]:
    return small_job | {"shard_seconds": 1e-6}


class Failing:
    """In the place of the plain function of `infer`: raises what the test says before it scores."""

    def __init__(self, errors: Callable[[str, int], Exception | None]) -> None:
        self._errors = errors
        self.tries: dict[str, int] = {}

    def __call__(self, run: Any, plan_id: str, shard: Any, *shared: Any) -> Any:
        self.tries[shard.shard_id] = self.tries.get(shard.shard_id, 0) + 1
        error = self._errors(shard.shard_id, self.tries[shard.shard_id])
        if error is not None:
            raise error
        return infer_shard(run, plan_id, shard, *shared)


def use(monkeypatch: pytest.MonkeyPatch, failing: Failing) -> None:
    task = score_module.infer.with_options(retry_delay_seconds=0.01, retry_jitter_factor=0)
    monkeypatch.setattr(task, "fn", failing)
    monkeypatch.setattr(score_module, "infer", task)


def test_a_passing_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch, many_shards: dict[str, Any]) -> None:
    failing = Failing(lambda _, tries: OSError(errno.EIO, "gone") if tries == 1 else None)
    use(monkeypatch, failing)
    report = run(many_shards)
    assert report.shards > 3
    assert set(failing.tries.values()) == {2}
    assert report.published.missing == 0


def test_a_lasting_failure_is_not_tried_again_and_the_rest_is_published(
    monkeypatch: pytest.MonkeyPatch, many_shards: dict[str, Any]
) -> None:
    shards: list[str] = []

    def second_fails(shard_id: str, _: int) -> Exception | None:
        if shard_id not in shards:
            shards.append(shard_id)
        return ValueError("broken") if shards[1:2] == [shard_id] else None

    failing = Failing(second_fails)
    use(monkeypatch, failing)
    with pytest.raises(ShardsFailedError, match="1 shards failed") as failed:
        run(many_shards)
    assert isinstance(failed.value.__cause__, ValueError)
    assert set(failing.tries.values()) == {1}
    [counts] = answer(many_shards, "select count(*) as n from results")
    assert 0 < counts["n"] < 20

    monkeypatch.undo()
    report = run(many_shards)
    assert (report.published.results, report.published.errors) == (20, 1)
    assert report.scored_rows == 20 - counts["n"]


@pytest.mark.parametrize(
    ("key", "value", "error", "said"),
    [
        ("on_error", "fail", ErrorRowError, r"row 'row-20': EMPTY_PROMPT: .* \(on_error: fail\)"),
        ("max_error_rate", 0.04, TooManyErrorsError, r"4\.8% of the rows were rejected; max_error_rate allows 4\.0%"),
    ],
)
def test_rows_that_are_rejected_end_a_run_that_allows_none_before_one_is_computed(
    small_job: dict[str, Any], key: str, value: object, error: type[RunFailedError], said: str
) -> None:
    engine = FakeWorkers()
    with workers_from(lambda _: nullcontext(engine)), pytest.raises(error, match=said):
        run(small_job | {key: value})
    assert engine.works == []
    assert answer(small_job, "select custom_id, error_type from errors") == [
        {"custom_id": "row-20", "error_type": "EMPTY_PROMPT"}
    ]
    assert answer(small_job, "select status from runs") == [{"status": "failed"}]


@pytest.mark.fault(2)
def test_shards_that_an_engine_takes_along_are_asked_again_alone_and_not_blamed(many_shards: dict[str, Any]) -> None:
    engine = FakeWorkers(deaths=2)
    with workers_from(lambda _: nullcontext(engine)):
        report = run(many_shards)
    assert report.shards > 3
    assert len(engine.works) == report.shards + 2
    assert (report.published.results, report.published.error_types) == (20, (("EMPTY_PROMPT", 1),))


def test_nothing_more_is_submitted_when_every_shard_fails(
    monkeypatch: pytest.MonkeyPatch, many_shards: dict[str, Any]
) -> None:
    failing = Failing(lambda *_: ValueError("broken"))
    use(monkeypatch, failing)
    with pytest.raises(ShardsFailedError):
        run(many_shards)
    # Three that failed, and those that were already running.
    assert len(failing.tries) <= score_module.FAILED_SHARDS_ALLOWED + score_module.SHARDS_IN_FLIGHT - 1


def test_what_the_user_can_mend_is_a_user_error(small_job: dict[str, Any]) -> None:
    small_job["source"]["id"] = "truth"
    with pytest.raises(UserError, match=r"source\.id"):
        run(small_job)


def test_the_summary_is_an_artifact(small_job: dict[str, Any]) -> None:
    from prefect.artifacts import Artifact

    small_job["name"] = "Artifact_Test"
    run(small_job)
    summary = Artifact.get("trunkline-artifact-test-summary")
    progress = Artifact.get("trunkline-artifact-test-progress")
    assert summary is not None
    assert "20 results, 1 errors" in str(summary.data)
    assert progress is not None
    assert progress.data == 100.0
    assert "rows 21/21" in str(progress.description)
    assert "1 errors" in str(progress.description)
    errors = Artifact.get("trunkline-artifact-test-errors")
    assert errors is not None
    assert json.loads(str(errors.data)) == [{"error": "EMPTY_PROMPT", "rows": 1}]
    link = Artifact.get("trunkline-artifact-test-report")
    assert link is not None
    assert str(link.data) == f"[report.html]({(Path(small_job['output']) / 'report.html').as_uri()})"


def test_artifact_keys_are_what_prefect_takes() -> None:
    assert artifact_key("Package.Topics_2") == "trunkline-package-topics-2"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def loads_for_ever(*_: object, **__: object) -> Engine:
    """An engine whose model takes longer to load than anybody waits."""

    def load() -> Any:
        while True:
            checkpoint()
            time.sleep(0.01)

    return Engine(load, EngineConfig())


def interrupt_when(condition: Callable[[], bool]) -> None:
    """SIGINT to this process once the condition holds."""

    def wait() -> None:
        wait_for(condition)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize(("tokens", "stage"), [(0, "planning"), (64, "loading the model")])
def test_a_run_is_stopped_while_the_model_loads(
    small_job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, stage: str
) -> None:
    """Planning waits for a model whose step is not measured yet, the first shards for any."""
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    small_job["engine"]["max_num_batched_tokens"] = tokens
    seen: list[Progress] = []
    interrupt_when(lambda: any(progress.stage == stage for progress in seen))
    before = set(threading.enumerate())
    with (
        watch(seen.append),
        workers_from(lambda run: InProcess(run.model, run.config, start_engine=loads_for_ever)),
        pytest.raises(KeyboardInterrupt),
    ):
        run(small_job)
    stopped = time.monotonic()
    wait_for(lambda: not [t for t in set(threading.enumerate()) - before if t.name == "trunkline-engine"])
    assert time.monotonic() - stopped < 1
    assert [record.status for record in records_of(small_job)] == ["interrupted"]
