"""Adapters in a job: found, checked, named in requests by what they hold."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.model.adapter_files import read_adapter
from examples.adapters import write_adapter
from tasks.deduplicate import deduplicate_requests
from tasks.extract import extract_rows
from tasks.job.job import ScoringJob
from tasks.plan import make_run_plan
from tasks.storage.run import open_run
from tests.engine.tiny_adapters import llama_linears
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import outcomes, plan_alone, run_steps, use_fakes

FAKE = llama_linears(64, 64, 32, 128, 2)


def with_model(job_of: JobMaker, rows: list[dict[str, Any]], **model: Any) -> ScoringJob:
    path = job_of(rows).model.path
    return job_of(rows, model={"path": path} | model)


def adapters_of(job: ScoringJob) -> dict[str, str | None]:
    """By prompt, what the plan's requests run with."""
    import pyarrow.parquet as pq

    with open_run(job) as run:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), FakeWorkers())
        table = pq.read_table(run.folder.plans / planned.plan_id / "requests.parquet")
    prompts = (bytes(ids).decode() for ids in table.column("prompt_token_ids").to_pylist())
    return dict(zip(prompts, table.column("adapter").to_pylist(), strict=True))


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch, FakeWorkers())


def test_a_row_names_an_adapter_or_its_folder(job_of: JobMaker, tmp_path: Path) -> None:
    """A cell that says nothing has the job's, where it has one."""
    poems, laws = (write_adapter(tmp_path / name, FAKE, seed) for seed, name in enumerate(("poems", "laws")))
    rows = [{"text": "a", "by": "poems"}, {"text": "b", "by": str(laws)}, {"text": "c", "by": None}]
    names = {"adapters": {"poems": str(poems)}, "adapter_column": "by"}
    found = adapters_of(with_model(job_of, rows, **names))
    assert found == {"a": read_adapter(poems).name, "b": read_adapter(laws).name, "c": None}
    assert adapters_of(with_model(job_of, rows, adapter=str(laws), **names))["c"] == read_adapter(laws).name
    everywhere = adapters_of(with_model(job_of, rows, adapters={"poems": str(poems)}, adapter="poems"))
    assert set(everywhere.values()) == {read_adapter(poems).name}


def test_equal_content_in_two_places_is_one_request(job_of: JobMaker, tmp_path: Path) -> None:
    """And an answer that is there already stays one where a folder moves; other content has none."""
    first = write_adapter(tmp_path / "first", FAKE)
    shutil.copytree(first, tmp_path / "second")
    rows = [{"text": "same", "by": str(tmp_path / name)} for name in ("first", "second")] + [{"text": "same", "by": ""}]
    job = with_model(job_of, rows, adapter_column="by")
    planned, _ = run_steps(job)
    assert (planned.rows, planned.unique, planned.pending) == (3, 2, 2)
    write_adapter(first, FAKE, seed=3)
    planned, _ = run_steps(job)
    assert (planned.unique, planned.committed, planned.pending) == (3, 2, 1)


def test_a_row_whose_adapter_cannot_run_is_an_error_row(job_of: JobMaker, tmp_path: Path) -> None:
    right = write_adapter(tmp_path / "right", FAKE)
    wrong = write_adapter(tmp_path / "wrong", llama_linears(64, 64, 32, 256, 2))
    cells = ["right", str(wrong), str(tmp_path / "nowhere"), None]
    rows = [{"id": str(n), "text": f"row {n}", "by": cell} for n, cell in enumerate(cells)]
    job = with_model(job_of, rows, adapters={"right": str(right)}, adapter_column="by")
    run_steps(job)
    assert list(outcomes(job).values()) == ["ok", "BAD_ADAPTER", "BAD_ADAPTER", "ok"]


@pytest.mark.parametrize("key", ["model.adapters.poems", "model.adapter"])
def test_what_the_job_names_is_refused_before_the_run(job_of: JobMaker, tmp_path: Path, key: str) -> None:
    wrong = str(write_adapter(tmp_path / "wrong", llama_linears(64, 64, 32, 256, 2)))
    named: dict[str, Any] = {"adapters": {"poems": wrong}} if key.endswith("poems") else {"adapter": wrong}
    with (
        pytest.raises(UserError, match=rf"{key}: .*wrong is for another base"),
        open_run(with_model(job_of, [{"text": "a"}], **named)),
    ):
        pass


def test_one_that_the_kv_budget_does_not_hold_is_refused_with_its_size(job_of: JobMaker, tmp_path: Path) -> None:
    large = str(write_adapter(tmp_path / "large", FAKE, rank=512))
    path = job_of([{"text": "a"}]).model.path
    job = job_of([{"text": "a"}], model={"path": path, "adapter": large}, engine={"kv_cache_memory": "1MiB"})
    with pytest.raises(UserError, match=r"model\.adapter: .*large .*enlarge engine\."), open_run(job):
        pass


def test_a_plan_is_not_taken_up_with_adapters_that_changed(job_of: JobMaker, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "poems", FAKE)
    job = with_model(job_of, [{"text": f"row {n}", "by": str(folder)} for n in range(3)], adapter_column="by")
    _, planned = plan_alone(job)
    assert plan_alone(job)[0].reused_plan == planned.plan_id
    write_adapter(folder, FAKE, seed=9)
    extracted, anew = plan_alone(job)
    assert extracted.reused_plan is None
    assert (anew.unique, anew.pending) == (3, 3)
