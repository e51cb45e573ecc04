"""Hidden states that embeddings are made of: each read at its own row, once a node and a pooling, whoever asks."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.planning.planner import shard_work
from engine.pooling_params import POOLING, Pooling, PoolingParams
from engine.request import Request
from engine.scheduling.halves import halves
from engine.scheduling.hidden_reads import HiddenReads, pooled
from engine.scheduling.reads import ReadKind
from tests.engine.scheduling.test_prompt_reads import Run, runs
from tests.engine.scheduling.test_prompt_reads import tables as other_tables
from tests.engine.scheduling.test_scheduler import prompts, request
from tests.engine.symbolic_model import hidden_read


def embeds(name: str, prompt: list[int], pooling: Pooling) -> Request:
    return replace(request(name, prompt, labels=[]), pooling=PoolingParams(pooling, normalize=False))


@st.composite
def tables(draw: st.DrawFn) -> list[Request]:
    """Embeddings of all poolings on few stems, among texts, labels and requests for log-probabilities of prompts."""
    others = draw(other_tables())
    stems = [one.prompt_token_ids.tolist() for one in others] + draw(st.lists(prompts, min_size=1, max_size=2))
    tails = st.lists(st.integers(1, 3), max_size=4)
    rows = draw(st.lists(st.tuples(st.sampled_from(stems), tails, st.sampled_from(POOLING)), min_size=1, max_size=10))
    asked: list[Request] = [embeds(f"e{i}", stem + tail, pooling) for i, (stem, tail, pooling) in enumerate(rows)]  # type: ignore[arg-type]
    return draw(st.permutations([*others, *asked]))


def assert_pooled(run: Run) -> None:
    for sequence in run.sequences:
        asked, prompt = sequence.request.pooling, sequence.request.prompt_token_ids.tolist()
        got = sequence.embedding
        if asked is None:
            assert got is None
            continue
        states = np.array([[1, run.model.chain_of(prompt[: at + 1]), at] for at in range(len(prompt))], float)
        weights = {
            "last": np.arange(len(prompt)) == len(prompt) - 1,
            "mean": np.ones(len(prompt)),
            "weighted": np.arange(len(prompt)) + 1,
        }[asked.pooling]
        assert got is not None
        np.testing.assert_allclose(got, np.average(states, axis=0, weights=weights), rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(runs(tables()))
def test_every_state_counts_as_often_as_its_pooling_says(run: Run) -> None:
    run.assert_right(run.drain())
    assert_pooled(run)


def test_a_common_stem_is_computed_and_read_once() -> None:
    stem = [1, 2, 3, 1, 2, 3, 1, 2, 3]
    requests = [embeds(str(i), [*stem, i], "mean") for i in (4, 5, 6)]
    run = Run(requests, random.Random(0), 0, shard_seconds=1e9)
    run.assert_right(run.drain())
    assert_pooled(run)
    assert run.num_prefill == run.num_reads == 9 + 3


@pytest.mark.parametrize("pooling", POOLING)
def test_only_what_is_read_goes_through_the_last_layer_and_nothing_through_the_head(pooling: Pooling) -> None:
    requests = [embeds("a", [1, 2, 3, 4], pooling), embeds("b", [1, 2, 3, 5], pooling)]
    run = Run(requests, random.Random(0), 0, shard_seconds=1e9, max_num_batched_tokens=64)
    run.hand_over()
    step = run.scheduler.schedule()
    assert step is not None
    assert step.num_prefill_tokens == 5
    assert step.asked_rows.tolist() == ([3, 4] if pooling == "last" else [0, 1, 2, 3, 4])
    assert step.num_head_rows == 0
    assert step.reads.place.tolist() == {"last": [1, 1], "mean": [1] * 5, "weighted": [1, 2, 3, 4, 4]}[pooling]


def test_a_request_that_comes_late_has_the_rows_computed_again_that_nobody_read() -> None:
    stem = [1, 2, 3, 1, 2, 3, 1, 2]
    requests = [request("first", [*stem, 4], max_tokens=9), embeds("late", [*stem, 5], "mean")]
    run = Run(requests, random.Random(0), 0, shard_seconds=1e9, max_num_batched_tokens=64)
    work = shard_work(run.plan, run.plan.shards[0], requests)
    first, late = (
        replace(work, requests=(made,), node_of=(node,)) for made, node in zip(work.requests, work.node_of, strict=True)
    )
    run.sequences += run.scheduler.add(first)
    step = run.scheduler.schedule()
    assert step is not None
    assert not len(step.reads.of_kind(ReadKind.HIDDEN))
    run.model.run(step)
    run.sequences += run.scheduler.add(late)
    step = run.scheduler.schedule()
    assert step is not None
    rows = run.model.run(step)
    hidden = step.reads.of_kind(ReadKind.HIDDEN)
    assert sorted(step.position_ids[hidden.row].tolist()) == [*range(8), 8]
    for read in hidden:
        reads, part = hidden_read(run.scheduler, run.model, read, rows)
        reads.take(part)
    [sequence] = [one for one in run.sequences if one.request.request_id == "late"]
    assert sequence.embedding is not None
    assert sequence.embedding[2] == pytest.approx(4)  # the mean position of nine tokens
    assert sequence.num_cached_tokens == 0


def test_halves_read_what_the_whole_reads() -> None:
    requests = [embeds(str(i), [1, 2, 3, 1, 2, 3, i], "weighted") for i in (4, 5)]
    run = Run(requests, random.Random(0), 0, shard_seconds=1e9, max_num_batched_tokens=64)
    run.hand_over()
    step = run.scheduler.schedule()
    assert step is not None
    parts = halves(step)
    assert parts is not None
    before, behind = parts
    moved = behind.reads.table.copy()
    moved[:, 0] += before.num_scheduled_tokens
    assert np.concatenate((before.reads.table, moved)).tolist() == step.reads.table.tolist()


def test_poolings_of_two_nodes() -> None:
    """Worked by hand: three tokens at a root, two behind it."""
    root, leaf = np.float32([1 + 2 + 3]), np.float32([10 + 20])
    parts = [HiddenReads.of(0, 0, 3, "mean"), HiddenReads.of(1, 3, 2, "mean")]
    assert parts[1].weights(np.array([0, 1])).tolist() == [1, 1]
    for part, states in zip(parts, (root, leaf), strict=True):
        part.take(states)
    assert pooled(parts, 5).tolist() == [36 / 5]
    weighted = [HiddenReads.of(0, 0, 3, "weighted"), HiddenReads.of(1, 3, 2, "weighted")]
    assert weighted[1].weights(np.array([0, 1])).tolist() == [4, 5]
    weighted[0].take(np.float32([1 * 1 + 2 * 2]))
    weighted[0].take(np.float32([3 * 3]))
    weighted[1].take(np.float32([4 * 10 + 5 * 20]))
    assert pooled(weighted, 5).tolist() == [(14 + 140) / 15]
    last = HiddenReads.of(0, 3, 2, "last")
    assert last.pending(0, 2).tolist() == [1]
