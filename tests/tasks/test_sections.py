"""A table that is planned in sections: the same rows with the same answers, and little computed twice."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.plan import PlanOutline, PlanSummary, Shard, join
from tasks import sections
from tasks.dry_run import plan_job
from tasks.sections import read_sections
from tasks.storage.token_arrays import to_list_array
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import run_steps, table


def write_pending(folder: Path, prompts: list[list[int]]) -> Path:
    tokens = to_list_array([np.array(prompt, dtype=np.int32) for prompt in prompts])
    path = folder / "pending.parquet"
    names = pa.array([f"{index:03}" for index in range(len(prompts))])
    adapters = pa.nulls(len(prompts), pa.string())
    pq.write_table(pa.table({"request_hash": names, "prompt_token_ids": tokens, "adapter": adapters}), path)
    return path


def shared(before: list[int], after: list[int]) -> int:
    """Tokens that two prompts begin with."""
    pairs = enumerate(zip(before, after, strict=False))
    return next((at for at, (x, y) in pairs if x != y), min(len(before), len(after)))


def prompts_of(table: pa.Table) -> list[list[int]]:
    prompts: list[list[int]] = table.column("prompt_token_ids").to_pylist()
    return prompts


def test_one_section_is_in_the_source_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[9, index % 3, index] for index in range(20)]
    monkeypatch.setattr(sections, "BATCH_ROWS", 8)
    monkeypatch.setattr(sections, "SECTION_ROWS", 20)
    assert list(map(prompts_of, read_sections(write_pending(tmp_path, prompts)))) == [prompts]
    assert list(read_sections(write_pending(tmp_path, []))) == []


@pytest.mark.parametrize(("limit", "value"), [("SECTION_ROWS", 8), ("SECTION_TOKENS", 24)])
def test_sections_are_sorted_by_prompt(limit: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[9, index % 3, 255 * (index % 2)] for index in range(20)]
    monkeypatch.setattr(sections, "BATCH_ROWS", 4)
    monkeypatch.setattr(sections, limit, value)
    found = list(read_sections(write_pending(tmp_path, prompts)))
    assert [section.num_rows for section in found] == [8, 8, 4]
    assert [prompt for section in found for prompt in prompts_of(section)] == sorted(prompts)
    names = [name for section in found for name in section.column("request_hash").to_pylist()]
    assert sorted(names) == [f"{index:03}" for index in range(20)]
    assert names[:4] == ["000", "006", "012", "018"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["pending.parquet"]


def test_rows_and_answers_do_not_follow_from_sections(
    job_of: JobMaker, engine: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"shared instruction {'abc'[i % 3] * 20} {i}" for i in range(60)]
    job = job_of(
        [{"id": f"r{i}", "text": text, "topic": i} for i, text in enumerate(texts)],
        source={"id": "id"},
        shard_seconds=1e-4,
    )
    whole = plan_job(job)
    monkeypatch.setattr(sections, "BATCH_ROWS", 4)
    monkeypatch.setattr(sections, "SECTION_ROWS", 16)
    cut = plan_job(job)
    planned, published = run_steps(job)
    assert (published.results, published.missing) == (60, 0)
    assert len(engine.scored) == len(set(engine.scored)) == 60
    assert {row["custom_id"] for row in table(job)} == {f"r{i}" for i in range(60)}

    assert cut.shards == planned.shards
    assert [shard.index for shard in planned.shards] == list(range(len(planned.shards)))
    assert all(before.last == after.first for before, after in pairwise(planned.shards))
    assert (planned.shards[0].first, planned.shards[-1].last) == (0, 60)
    # Computed twice is what the prompts on both sides of a section's end have in common.
    prompts = sorted(request.prompt_token_ids.tolist() for work in engine.works for request in work.requests)
    common = sum(shared(*prompts[end - 1 : end + 1]) for end in (16, 32, 48))
    assert planned.summary.computed_tokens - whole.plan.computed_tokens == common > 0
    assert planned.summary.prompt_tokens == whole.plan.prompt_tokens

    # All shards number nodes alike: what is below one begins alike, wherever it runs.
    begins: dict[int, Any] = {}
    for work in engine.works:
        nodes = {node.node_id: node for node in work.nodes}
        for request, node_id in zip(work.requests, work.node_of, strict=True):
            while node_id >= 0:
                prompt = request.prompt_token_ids[: nodes[node_id].end].tolist()
                assert begins.setdefault(node_id, prompt) == prompt
                node_id = nodes[node_id].parent
    assert sorted(begins) == list(range(len(begins)))


def outline(name: str, sizes: list[int], peak: int) -> PlanOutline:
    ends = np.cumsum([0, *sizes]).tolist()
    shards = [Shard(i, f"{name}{i}", first, last, 1, 2, 0.5) for i, (first, last) in enumerate(pairwise(ends))]
    return PlanOutline(name, tuple(shards), PlanSummary(ends[-1], 1, 20, 10, 8, 3, 4, peak, 99, 2.5))


def test_outlines_join() -> None:
    first, second = outline("a", [3, 2], 7), outline("b", [4], 5)
    assert join([first], 99) is first
    joined = join([first, second], 99)
    assert joined.shards == (
        Shard(0, "a0", 0, 3, 1, 2, 0.5),
        Shard(1, "a1", 3, 5, 1, 2, 0.5),
        Shard(2, "b0", 5, 9, 1, 2, 0.5),
    )
    assert joined.summary == PlanSummary(9, 2, 40, 20, 16, 6, 8, 7, 99, 5.0)
    assert joined.layout_id not in ("a", "b", join([second, first], 99).layout_id)
    assert join([], 99).summary == PlanSummary(0, 0, 0, 0, 0, 0, 0, 0, 99, 0)


def test_a_sort_that_runs_out_of_memory_gets_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = np.random.default_rng(0).integers(0, 2**15, (600, 4000)).tolist()
    asked: list[str] = []
    sort_in = sections._sort_in

    def noted(memory_limit: str, pending: Path, ordered: Path) -> None:
        asked.append(memory_limit)
        sort_in(memory_limit, pending, ordered)

    monkeypatch.setattr(sections, "_sort_in", noted)
    monkeypatch.setattr(sections, "_SORT_MIB", 16)
    monkeypatch.setattr(sections, "BATCH_ROWS", 100)
    monkeypatch.setattr(sections, "SECTION_ROWS", 100)
    found = [prompt for section in read_sections(write_pending(tmp_path, prompts)) for prompt in prompts_of(section)]
    assert found == sorted(prompts)
    assert asked[:2] == ["16MiB", "32MiB"]
    monkeypatch.setattr(sections, "machine_memory", lambda: 2**25)
    with pytest.raises(duckdb.OutOfMemoryException):
        list(read_sections(tmp_path / "pending.parquet"))
