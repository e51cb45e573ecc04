"""The steps together: every row once, equal requests once, nothing twice."""

import json
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from engine.errors import UserError
from tasks import publish
from tasks.check import check_job
from tasks.dry_run import plan_job
from tasks.infer import infer_shard
from tasks.plan import make_run_plan
from tasks.report.latest import latest_output
from tasks.report.totals import Totals
from tasks.storage.commit import sha256_of
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.parts import PART_SCHEMA
from tasks.storage.run import Run, open_run
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import ask, deduplicate_requests, extract_rows, plan_alone, run_steps, table

GENERATE = {"type": "generate"}


def rows(*texts: str | None) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "text": text, "topic": i} for i, text in enumerate(texts)]


@pytest.mark.fault(14, 15, 16, 18)
def test_every_row_ends_once(job_of: JobMaker, engine: FakeWorkers) -> None:
    texts = ["one", None, "two", "one", "", " \n", "x" * 300, "unlucky", "nul\x00"]
    job = job_of(rows(*texts), source={"id": "id", "keep": ["topic"]})
    check_job(job)
    planned, published = run_steps(job)
    outcome = {row["custom_id"]: row["error_type"] or row["status"] for row in table(job)}
    assert outcome == {
        "r0": "ok",
        "r1": "EMPTY_PROMPT",
        "r2": "ok",
        "r3": "ok",
        "r4": "EMPTY_PROMPT",
        "r5": "EMPTY_PROMPT",
        "r6": "CONTEXT_OVERFLOW",
        "r7": "NON_FINITE",
        "r8": "BAD_ENCODING",
    }
    assert (planned.rows, planned.rejected, planned.unique, planned.pending) == (9, 5, 3, 3)
    assert (published.rows, published.results, published.errors, published.missing) == (9, 3, 6, 0)
    assert len(engine.scored) == 3
    assert {row["topic"] for row in table(job)} == set(range(9))
    assert latest_output() == OutputFolder(job.output_folder)


def test_label_probabilities(job_of: JobMaker) -> None:
    job = job_of(rows("one"))
    run_steps(job)
    [row] = table(job)
    probabilities, logprobs = dict(row["label_probs"]), dict(row["label_logprobs"])
    assert sum(probabilities.values()) == pytest.approx(1)
    assert row["label"] == max(logprobs, key=logprobs.__getitem__) == max(probabilities, key=probabilities.__getitem__)
    assert row["finish_reason"] == "scored"


def test_generated_rows(job_of: JobMaker) -> None:
    job = job_of(rows("one", "two"), task=GENERATE, sampling={"max_tokens": 3})
    _, published = run_steps(job)
    assert [(row["finish_reason"], row["completion_tokens"]) for row in table(job)] == [("length", 3)] * 2
    assert [name for name, _ in published.answers[0].rows] == ["0", "1"]
    assert published.answers[0].shown.quote


@pytest.mark.fault(17)
def test_the_same_command_again_scores_nothing(job_of: JobMaker, engine: FakeWorkers) -> None:
    job = job_of(rows("one", None, "two", "unlucky"))
    run_steps(job)
    before = table(job)
    planned, published = run_steps(job)
    assert (planned.committed, planned.pending, published.missing) == (3, 0, 0)
    assert len(engine.scored) == 3
    assert table(job) == before


def test_only_new_and_changed_rows_are_scored(job_of: JobMaker, engine: FakeWorkers) -> None:
    run_steps(job_of(rows("one", "two", "three")))
    engine.works.clear()
    job = job_of(rows("one", "changed", "three", "new"))
    planned, published = run_steps(job)
    assert (planned.committed, planned.pending, len(engine.scored), published.results) == (2, 2, 2, 4)


@pytest.mark.fault(12)
@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": {"max_tokens": 4}},
        {"sampling": {"max_tokens": 5, "temperature": 1, "seed": 1}},
        {"sampling": {"max_tokens": 5, "stop": "a"}},
        {"model": {"path": "other"}},
        {"model": "int8"},
        {"prompt": {"template": "{{ text }}."}},
    ],
)
def test_another_request_is_never_answered_by_an_older_result(
    job_of: JobMaker, engine: FakeWorkers, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(rows("one"), task=GENERATE, sampling={"max_tokens": 5})
    run_steps(job)
    if changes.get("model") == "int8":
        changes = {"model": {"path": job.model.path, "quantization": "int8"}}
    elif "model" in changes:
        other = job.output_folder.parent / "other"
        other.mkdir()
        (other / "config.json").write_bytes((job.output_folder.parent / "model" / "config.json").read_bytes())
        (other / "model.safetensors").write_bytes(b"other weights")
        changes = {"model": {"path": str(other)}}
    run_steps(job_of(rows("one"), **({"task": GENERATE, "sampling": {"max_tokens": 5}} | changes)))
    assert len(set(engine.scored)) == 2


def test_parts_that_lack_a_column_that_came_later_are_read(
    job_of: JobMaker, engine: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pa.schema([field for field in PART_SCHEMA if field.name not in ("logprob", "is_greedy")])
    monkeypatch.setattr("tasks.storage.parts.PART_SCHEMA", first)
    run_steps(job_of(rows("one", "two")))
    monkeypatch.setattr("tasks.storage.parts.PART_SCHEMA", PART_SCHEMA)
    _, published = run_steps(job_of(rows("one", "two")))
    assert (len(engine.scored), published.results) == (2, 2)
    job = job_of(rows("one", "two", "three"))
    planned, published = run_steps(job)
    assert (planned.committed, planned.pending, published.results) == (2, 1, 3)
    assert [(row["logprob"], row["label"] is None) for row in table(job)] == [(None, False)] * 3


@pytest.mark.fault(17)
def test_draws_without_a_seed_are_not_shared(job_of: JobMaker, engine: FakeWorkers) -> None:
    unseeded = {"temperature": 1.0}
    run_steps(job_of(rows("one", "one"), task=GENERATE, sampling=unseeded, source={"id": "id"}))
    assert len(set(engine.scored)) == 2
    engine.works.clear()
    run_steps(job_of(rows("one", "one"), task=GENERATE, sampling=unseeded | {"seed": 3}, source={"id": "id"}))
    assert len(set(engine.scored)) == 1


def test_retry_failed_scores_errors_alone_and_shows_the_newest_attempt(job_of: JobMaker, engine: FakeWorkers) -> None:
    job = job_of(rows("one", "unlucky", None))
    run_steps(job)
    engine.works.clear()
    run_steps(job, retry_failed=True)
    assert len(engine.scored) == 1
    assert [(row["status"], row["attempts"]) for row in table(job)] == [("ok", 1), ("error", 2), ("error", 0)]
    engine.heals = True
    run_steps(job, retry_failed=True)
    assert [(row["status"], row["attempts"]) for row in table(job)] == [("ok", 1), ("ok", 3), ("error", 0)]
    planned, _ = run_steps(job, retry_failed=True)
    assert planned.pending == 0


def test_an_unfinished_run_is_taken_up(job_of: JobMaker, engine: FakeWorkers) -> None:
    job = job_of(rows(*(f"document {i}" for i in range(40))), shard_seconds=1e-4)
    _, planned = plan_alone(job, scored_shards=1)
    with open_run(job) as run:
        extracted = extract_rows(run)
        assert extracted.reused_plan == planned.plan_id
        again = make_run_plan(run, deduplicate_requests(run, extracted), engine)
        assert again == planned
        done = [infer_shard(run, again.plan_id, shard, engine) for shard in again.shards]
    assert [one.skipped for one in done] == [True] + [False] * (len(done) - 1)
    assert len(engine.scored) == len(set(engine.scored)) == 40


def test_a_plan_is_not_taken_up_for_another_job_source_or_purpose(job_of: JobMaker) -> None:
    def reused(job: Any, *, retry_failed: bool = False) -> bool:
        extracted, _ = plan_alone(job, retry_failed=retry_failed)
        return extracted.reused_plan is not None

    job = job_of(rows("one", "two"))
    assert not reused(job)
    assert reused(job)
    assert not reused(job, retry_failed=True)
    assert not reused(job_of(rows("one", "two"), engine={"device": "cpu", "sharing": "none"}))
    assert not reused(job_of(rows("one", "three")))


def test_shards_hold_the_nodes_on_their_paths(job_of: JobMaker, engine: FakeWorkers) -> None:
    texts = [f"shared instruction {'abc'[i % 3] * 20} {i}" for i in range(60)]
    planned, _ = run_steps(job_of(rows(*texts), shard_seconds=1e-4))
    assert len(engine.works) == len(planned.shards) > 2
    for work in engine.works:
        by_id = {node.node_id: node for node in work.nodes}
        for request, node_id in zip(work.requests, work.node_of, strict=True):
            path = []
            while node_id >= 0:
                path.append(by_id[node_id])
                node_id = by_id[node_id].parent
            bounds = [(node.start, node.end) for node in reversed(path)]
            assert bounds[0][0] == 0
            assert bounds[-1][1] == len(request.prompt_token_ids)
            assert all(before[1] == after[0] for before, after in pairwise(bounds))
    assert len({work.layout_id for work in engine.works}) == 1


def test_max_tokens_is_what_the_context_leaves(job_of: JobMaker, engine: FakeWorkers) -> None:
    run_steps(
        job_of(
            rows("a" * 250, "b" * 255, "c" * 256),
            task=GENERATE,
            sampling={"max_tokens": 10, "min_tokens": 9, "ignore_eos": True},
        )
    )
    asked = {request.prompt_token_ids.size: request.params for work in engine.works for request in work.requests}
    assert {size: (params.max_tokens, params.min_tokens) for size, params in asked.items()} == {
        250: (6, 6),
        255: (1, 1),
    }


def test_run_records(job_of: JobMaker) -> None:
    job = job_of(rows("one", "one", None, "unlucky"))
    run_steps(job)
    with pytest.raises(UserError), open_run(job):
        raise UserError("no luck")
    run_steps(job)
    first, second, third = ask(job.output_folder, "select * from runs")
    assert [run["status"] for run in (first, second, third)] == ["completed", "failed", "completed"]
    assert second["error"] == "no luck"
    assert (first["rows"], first["rejected"], first["unique_requests"], first["scored"], first["errors"]) == (
        4,
        1,
        2,
        2,
        1,
    )
    assert (third["committed_before"], third["pending"], third["scored"]) == (2, 0, 0)
    assert [run["sequence"] for run in (first, second, third)] == [1, 2, 3]
    assert [(run["quantization"], run["kv_cache_dtype"]) for run in (first, second, third)] == [("none", "auto")] * 3


def test_prefix_savings_are_of_the_shards_that_a_run_committed(job_of: JobMaker) -> None:
    job = job_of(rows("abcd", "abcd", "abce"))
    _, published = run_steps(job)
    [savings] = ask(job.output_folder, "select * from prefix_savings")
    assert (savings["prompt_tokens"], savings["unique_prompt_tokens"], savings["planned_tokens"]) == (12, 8, 5)
    assert savings["computed_prompt_tokens"] == 8  # the fake engine shares nothing
    assert savings["ideal_saved_fraction"] == pytest.approx(3 / 8)
    assert published.unique_prompt_tokens == 8


def test_a_job_without_a_row_that_can_be_scored(job_of: JobMaker, engine: FakeWorkers) -> None:
    job = job_of(rows(None, ""))
    _, published = run_steps(job)
    assert (published.results, published.errors, engine.works) == (0, 2, [])
    assert ask(job.output_folder, "select count(*) as n from shards") == [{"n": 0}]


def test_an_empty_table(job_of: JobMaker) -> None:
    job = job_of(pa.table({"text": pa.array([], pa.string())}))
    _, published = run_steps(job)
    assert (published.rows, published.missing) == (0, 0)


@pytest.mark.fault(6)
def test_a_try_that_ended_between_part_and_manifest(
    job_of: JobMaker, engine: FakeWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(rows("one"))
    with open_run(job) as run:
        planned = make_run_plan(run, deduplicate_requests(run, extract_rows(run)), engine)
        with monkeypatch.context() as failing:
            failing.setattr("tasks.shard_results.commit_manifest", lambda *_: (_ for _ in ()).throw(OSError(5, "gone")))
            with pytest.raises(OSError, match="gone"):
                infer_shard(run, planned.plan_id, planned.shards[0], engine)
        infer_shard(run, planned.plan_id, planned.shards[0], engine)
        [manifest] = read_manifests(run.folder)
        assert [path.name for path in run.folder.parts.iterdir()] == [manifest.files[0].name]
        assert sha256_of(run.folder.parts / manifest.files[0].name) == manifest.files[0].sha256


def test_what_steps_pass_on_can_go_to_another_process(job_of: JobMaker) -> None:
    job = job_of(rows("one"))
    with open_run(job) as run:
        extracted = extract_rows(run)
        deduplicated = deduplicate_requests(run, extracted)
        planned = make_run_plan(run, deduplicated, FakeWorkers())
        for passed in (run, extracted, deduplicated, planned, planned.shards[0]):
            assert pickle.loads(pickle.dumps(passed)) == passed


@pytest.mark.fault(25)
def test_nothing_of_a_prompt_is_logged(job_of: JobMaker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    job = job_of(rows("a secret", "a secret\x00", "secret" * 60), prompt={"template": "{{ text }}"})
    run_steps(job)
    assert "secret" not in caplog.text


@pytest.mark.fault(22)
def test_a_token_without_an_embedding_is_the_rows_own_error(job_of: JobMaker, tmp_path: Path) -> None:
    rows = [{"id": "plain", "text": "plain"}, {"id": "special", "text": "with <|end|> in it"}]
    job = job_of(rows, source={"id": "id"}, prompt={"column": "text", "special_tokens": "parsed"})
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 258}))
    run_steps(job)
    ended = {row["custom_id"]: row["error_type"] for row in table(job)}
    assert ended == {"plain": None, "special": "UNKNOWN_TOKEN"}


@pytest.mark.parametrize(("special_tokens", "told"), [("text", True), ("parsed", False)])
def test_a_run_tells_that_special_tokens_are_text(
    job_of: JobMaker, caplog: pytest.LogCaptureFixture, special_tokens: str, told: bool
) -> None:
    rows = [{"text": "with <|end|> in it"}, {"text": "plain"}]
    run_steps(job_of(rows, prompt={"column": "text", "special_tokens": special_tokens}))
    assert ("1 rows hold the text of a special token" in caplog.text) is told


@pytest.mark.parametrize(
    ("key", "value"), [("stop_token_ids", [300]), ("allowed_token_ids", [300]), ("logit_bias", {300: 1})]
)
def test_a_token_that_the_model_lacks_is_refused(key: str, value: object, job_of: JobMaker) -> None:
    job = job_of([{"text": "a"}], task={"type": "generate"}, sampling={key: value})
    with pytest.raises(UserError, match=rf"sampling.{key}: 300 is no token of this model \(0 to 299\)"):
        plan_job(job)


def test_figures_that_need_more_memory_get_it(job_of: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    figures = publish._figures

    def hungry(run: Run, plan_id: str, totals: Totals, connection: duckdb.DuckDBPyConnection) -> publish.Published:
        [(limit,)] = connection.execute("SELECT current_setting('memory_limit')").fetchall()
        asked.append(limit)
        if len(asked) == 1:
            raise duckdb.OutOfMemoryException("a median of many")
        return figures(run, plan_id, totals, connection)

    monkeypatch.setattr(publish, "_figures", hungry)
    _, published = run_steps(job_of([{"id": "a", "text": "abcd"}]))
    assert published.results == 1
    assert asked == ["106.8 MiB", "1.8 GiB"]
