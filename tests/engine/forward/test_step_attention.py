"""What holds of every device's attention: rows against their definition, layers, and steps that are repeated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from engine.forward.attention_backend import AttentionBackend
from engine.forward.cpu.attention import CpuAttention
from engine.forward.cpu.fused_body import FusedBody, fuse_body
from engine.forward.cpu.loop_replay import LoopReplay
from engine.forward.forward_output import Chosen, Forward
from engine.forward.gpu.attention import GpuAttention
from engine.forward.gpu.decode_graphs import DecodeGraphs
from engine.forward.gpu.fused_layer import swap_layers
from engine.forward.kv_cache import KVCache
from engine.forward.step_attention import Scoring, StepAttention
from engine.forward.step_inputs import step_inputs
from engine.forward.step_recorder import StepRecorder
from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.kv_format import FLOAT32
from kernels.segments import Segment, Segments
from tests.engine.forward.cpu.test_fused_layer import SIZES, drawn
from tests.engine.forward.played_gpu import PlayedCapture

HEADS, KV_HEADS, DIM, LAYERS, SLOTS = 6, 2, 20, 2, 64
NOTHING_SAMPLED = torch.zeros(1, dtype=torch.int64)


def body_of(model: Any) -> Callable[..., Forward]:
    def compute(input_ids: Tensor, position_ids: Tensor, attention: StepAttention) -> Forward:
        ids, places = input_ids[None], position_ids[None]
        made = model.model(input_ids=ids, position_ids=places, use_cache=False, step_attention=attention)
        hidden = made.last_hidden_state[0]
        return Forward(hidden, Chosen(*reversed(hidden.max(-1))))

    return compute


def loop_replay(model: Any, cache: KVCache) -> StepRecorder:
    assert isinstance(model.model, FusedBody)
    return LoopReplay(model.model, CpuAttention(cache))


def decode_graphs(model: Any, cache: KVCache) -> StepRecorder:
    return DecodeGraphs(body_of(model), GpuAttention(cache), "cpu", PlayedCapture())


@dataclass(frozen=True)
class Implementation:
    """A device's own: its attention, the layers that run on it, and what repeats their steps."""

    backend: Callable[[KVCache], AttentionBackend]
    fuse: Callable[[Any], bool]
    recorder: Callable[[Any, KVCache], StepRecorder]


IMPLEMENTATIONS = {
    "cpu": Implementation(CpuAttention, lambda model: fuse_body(model, torch.float32), loop_replay),
    "gpu": Implementation(GpuAttention, swap_layers, decode_graphs),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def device(request: pytest.FixtureRequest) -> Implementation:
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def empty_cache() -> KVCache:
    cache = KVCache(LAYERS, KV_HEADS, SLOTS, DIM, FLOAT32, "cpu")
    for kept in (*cache.keys, *cache.values):
        kept.fill_(torch.nan)
    return cache


def step_of(
    positions: list[int], slots: list[int], segments: list[Segment], *, decodes: bool = True
) -> SchedulerOutput:
    rows = np.arange(len(positions))
    return SchedulerOutput(
        input_ids=7 * np.arange(len(positions), dtype=np.int64) + positions[0],
        position_ids=np.array(positions, dtype=np.int64),
        slot_mapping=np.array(slots, dtype=np.int64),
        segments=Segments.of(segments),
        reads=Reads.samples(rows, rows),
        num_prefill_tokens=0 if decodes else len(positions),
        num_decode_tokens=len(positions) if decodes else 0,
        num_label_tokens=0,
    )


# A prompt of nine tokens, of which all but the last are kept, in two runs of slots, and read from there.
PREFILL = step_of(
    [*range(9)],
    [*range(16, 20), *range(40, 44), -1],
    [Segment(0, 9, 16, 20, 0), Segment(4, 9, 40, 44, 4), Segment(8, 9, 8, 9, 8, in_step=True)],
    decodes=False,
)
# Two rows that go on from its first six tokens, the second from the first.
DECODE = step_of(
    [6, 7],
    [50, 51],
    [Segment(0, 2, 16, 20, 0), Segment(0, 2, 40, 42, 4), Segment(0, 2, 50, 51, 6), Segment(1, 2, 51, 52, 7)],
)


def by_definition(query: Tensor, keys: Tensor, values: Tensor, places: range, scoring: Scoring) -> Tensor:
    """One row: query (heads, dim) at the place behind the last of its own keys (kv_heads, places, dim)."""
    group, row = HEADS // KV_HEADS, places[-1]
    seen = [place for place in places if scoring.window is None or row - place < scoring.window]
    made = torch.empty(HEADS, DIM)
    for head in range(HEADS):
        scores = scoring.scale * keys[head // group, seen] @ query[head]
        if scoring.softcap is not None:
            scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
        sink = torch.full((1,), -torch.inf) if scoring.sinks is None else scoring.sinks[head : head + 1]
        made[head] = torch.cat((scores, sink)).softmax(0)[:-1] @ values[head // group, seen]
    return made


SCORINGS = {
    "plain": Scoring(DIM**-0.5),
    "window": Scoring(DIM**-0.5, window=3),
    "softcap": Scoring(0.5, softcap=2.0),
    "sinks": Scoring(DIM**-0.5, sinks=torch.linspace(-1, 2, HEADS)),
    "all": Scoring(0.5, window=4, softcap=3.0, sinks=torch.linspace(-1, 2, HEADS)),
}


@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS)
def test_rows_attend_to_what_their_segments_say(device: Implementation, scoring: Scoring) -> None:
    """Of this step and of the cache, in every layer; keys and values are then where slots say, and nowhere else."""
    torch.manual_seed(0)
    cache = empty_cache()
    backend = device.backend(cache)
    steps = [backend.prepare(step, step_inputs(step, "cpu")) for step in (PREFILL, DECODE)]
    for layer in range(LAYERS):
        drawn_ = [[torch.randn(heads, rows, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)] for rows in (9, 2)]
        (query, key, value), (next_query, next_key, next_value) = drawn_
        first = steps[0].run(layer, query, key, value, scoring)
        second = steps[1].run(layer, next_query, next_key, next_value, scoring)
        for row in range(9):
            wanted = by_definition(query[:, row], key, value, range(row + 1), scoring)
            torch.testing.assert_close(first[row], wanted, rtol=1e-4, atol=1e-5)
        keys, values = torch.cat((key[:, :6], next_key), 1), torch.cat((value[:, :6], next_value), 1)
        for row in range(2):
            wanted = by_definition(next_query[:, row], keys, values, range(7 + row), scoring)
            torch.testing.assert_close(second[row], wanted, rtol=1e-4, atol=1e-5)
        for kept, made, later in ((cache.keys, key, next_key), (cache.values, value, next_value)):
            wanted = torch.full((KV_HEADS, SLOTS, DIM), torch.nan)
            wanted[:, [*range(16, 20), *range(40, 44), 50, 51]] = torch.cat((made[:, :8], later), 1)
            torch.testing.assert_close(kept[layer], wanted, rtol=0, atol=0, equal_nan=True)


def model_of(window: int | None) -> Any:
    if window is None:
        return drawn(LlamaForCausalLM, LlamaConfig(**SIZES))
    return drawn(MistralForCausalLM, MistralConfig(**SIZES, sliding_window=window))


WINDOWS = pytest.mark.parametrize("window", [None, 3], ids=["no window", "window"])


@WINDOWS
@pytest.mark.parametrize("asked", [[0], [2, 7]], ids=str)
def test_the_last_layer_gives_the_asked_rows_alone(
    device: Implementation, window: int | None, asked: list[int]
) -> None:
    """And keeps keys and values of all, as transformers' own layers do on the same attention."""
    model, made = model_of(window), []
    caches = empty_cache(), empty_cache()
    for cache, rows in zip(caches, ([*range(9)], asked), strict=True):
        step = replace(PREFILL, reads=Reads.samples(np.array(rows), np.array(rows)))
        inputs = step_inputs(step, "cpu")
        attention = device.backend(cache).prepare(step, inputs)
        assert attention.asked_rows.tolist() == rows
        made.append(body_of(model)(inputs.input_ids, inputs.position_ids, attention).hidden)
        assert cache is caches[1] or device.fuse(model)
    assert made[1].shape == (len(asked), SIZES["hidden_size"])
    torch.testing.assert_close(made[1], made[0][asked], rtol=0, atol=2e-5)
    for one, other in zip((*caches[0].keys, *caches[0].values), (*caches[1].keys, *caches[1].values), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5, equal_nan=True)


def decode_steps() -> Iterator[SchedulerOutput]:
    """Two rows each, behind PREFILL: at the same places, at the next, at others, with segments of their own."""
    yield DECODE
    yield replace(DECODE, input_ids=DECODE.input_ids + 11)
    shared = [Segment(0, 2, 16, 20, 0)]
    yield step_of([4, 4], [30, 35], [*shared, Segment(0, 1, 30, 31, 4), Segment(1, 2, 35, 36, 4)])
    yield step_of([5, 5], [31, 36], [*shared, Segment(0, 1, 30, 32, 4), Segment(1, 2, 35, 37, 4)])
    yield step_of([8, 1], [44, -1], [Segment(0, 2, 16, 20, 0), Segment(0, 1, 40, 45, 4), Segment(1, 2, 17, 18, 1)])


@WINDOWS
def test_a_repeated_step_gives_what_it_gives_anew(device: Implementation, window: int | None) -> None:
    """With other tokens, positions, slots and segments than the one that was recorded; KV is where it says too."""
    model = model_of(window)
    assert device.fuse(model)
    caches = empty_cache(), empty_cache()
    recorder, compute = device.recorder(model, caches[0]), body_of(model)
    for cache in caches:
        inputs = step_inputs(PREFILL, "cpu")
        compute(inputs.input_ids, inputs.position_ids, device.backend(cache).prepare(PREFILL, inputs))
    results = []
    for step in decode_steps():
        assert recorder.takes(step, NOTHING_SAMPLED)
        repeated, inputs = recorder.run(step, NOTHING_SAMPLED), step_inputs(step, "cpu")
        attention = device.backend(caches[1]).prepare(step, inputs)
        anew = compute(inputs.input_ids, inputs.position_ids, attention)
        torch.testing.assert_close(repeated.hidden, anew.hidden, rtol=0, atol=2e-5)
        assert repeated.best is None or torch.equal(repeated.best.tokens, anew.best.tokens)
        results.append(anew.hidden.clone())
    assert not any(torch.equal(one, other) for one, other in pairwise(results))
    for one, other in zip((*caches[0].keys, *caches[0].values), (*caches[1].keys, *caches[1].values), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5, equal_nan=True)
