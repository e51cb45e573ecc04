"""An engine of two ranks in a process of its own: whoever of them dies, another engine answers, and nobody stays."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from engine.errors import EngineDeadError
from engine.model.checkpoint import resolve_model
from tasks.engine_process.engine_process import EngineProcess
from tasks.in_process import InProcess
from tests.tasks.engine_process.test_real_process import CONFIG, work


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
