"""An engine of two ranks in a process of its own: whoever of them dies or hangs, another answers, and nobody stays."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from engine.errors import EngineDeadError
from engine.model.checkpoint import resolve_model
from engine.plan import ShardWork
from engine.request import RequestOutput
from tasks.engine_process.engine_process import EngineProcess
from tasks.in_process import InProcess
from tasks.storage.run import Run
from tasks.workers import OnOutput
from tests.tasks.engine_process.test_real_process import CONFIG, work
from tests.tasks.steps import model_job, run_steps, table


def _named(part: str) -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if part in " ".join(child.cmdline())]


def _kill_rank() -> list[psutil.Process]:
    (rank,) = _named("engine.ranks.rank_server")
    rank.kill()
    return [rank]


def _kill_engine() -> list[psutil.Process]:
    (rank,), (engine,) = _named("engine.ranks.rank_server"), _named("tasks.engine_process.server")
    engine.kill()
    return [rank]


@pytest.mark.nightly
@pytest.mark.fault(2)
@pytest.mark.parametrize(("kill", "how"), [(_kill_rank, r"rank 1 ended: .*SIGKILL"), (_kill_engine, "SIGKILL")])
def test_another_engine_answers_behind_one_that_lost_a_rank(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kill: Callable[[], list[psutil.Process]], how: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    model = resolve_model(str(tiny_model))
    with InProcess(model, CONFIG) as workers:
        expected = workers.submit(work()).result(60)
    with EngineProcess(model, replace(CONFIG, tensor_parallel=2)) as workers:
        first = workers.submit(work()).result(60)
        gone = kill()
        with pytest.raises(EngineDeadError, match=how):
            workers.submit(work()).result(60)
        psutil.wait_procs(gone, timeout=10)
        assert not any(one.is_running() for one in gone)
        again = workers.submit(work()).result(60)
    assert _named("engine.ranks.rank_server") == []
    for outputs in (first, again):
        assert [output.token_ids for output in outputs] == [output.token_ids for output in expected]
        assert [output.error_type for output in outputs] == [output.error_type for output in expected]


class _StoppedAtItsFirstOutput(EngineProcess):
    """Its second rank is stopped, for good, as soon as an output comes; of the engine behind it, none is."""

    stopped: "psutil.Process | None" = None

    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]":
        def stop(output: RequestOutput) -> None:
            if self.stopped is None:
                (self.stopped,) = _named("engine.ranks.rank_server")
                self.stopped.suspend()
            if on_output is not None:
                on_output(output)

        return super().submit(work, stop)


@pytest.mark.nightly
@pytest.mark.fault(21)
def test_a_rank_that_does_not_come_to_a_sum_costs_a_run_the_time_of_a_step(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    rows = [{"id": f"{row}", "text": f"{row % 4} of four: row {row}"} for row in range(24)]
    one, two = tmp_path / "one", tmp_path / "two"
    engine = {"device": "cpu", "kv_cache_memory": "16MiB", "max_num_batched_tokens": 64}
    texts = {"task": {"type": "generate"}, "sampling": {"max_tokens": 24, "ignore_eos": True}, "shard_seconds": 0.001}
    jobs = []
    for folder, more in ((one, {}), (two, {"tensor_parallel": 2, "step_timeout": 3})):
        folder.mkdir()
        jobs.append(model_job(folder, tiny_model, rows, engine=engine | more, **texts))
    run_steps(jobs[0])
    made: list[_StoppedAtItsFirstOutput] = []

    def workers(run: Run) -> EngineProcess:
        made.append(_StoppedAtItsFirstOutput(run.model, run.config))
        return made[0]

    monkeypatch.setattr("tests.tasks.steps.workers_of", workers)
    run_steps(jobs[1])
    assert "no step ended in 3 s (engine.step_timeout), so its process was ended" in caplog.text
    assert "engine/forward/rank_group.py" in caplog.text, "where it was: in a sum"
    assert made[0].stopped is not None
    assert not made[0].stopped.is_running()
    assert _named("engine.ranks.rank_server") == []
    said = [[(row["custom_id"], row["generated_text"]) for row in table(job)] for job in jobs]
    assert said[0] == said[1]
    assert len(said[1]) == 24
