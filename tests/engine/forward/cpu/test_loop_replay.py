"""A step that makes the calls of the one before again gives what it gives anew."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from engine.forward.cpu.attention import CpuAttention, CpuStepAttention
from engine.forward.cpu.fused_body import FusedBody, fuse_body
from engine.forward.cpu.int8_linear import quantize_linears
from engine.forward.cpu.loop_replay import LoopReplay
from engine.forward.kv_cache import KVCache
from engine.scheduling.reads import Reads
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.kv_format import BFLOAT16, FLOAT32, INT8_ROWS, KVFormat
from kernels.segments import Segment, Segments
from tests.engine.forward.cpu.test_fused_layer import BYTES, MODELS, drawn

Slots = list[tuple[int, int]]
NOTHING_SAMPLED = torch.zeros(1, dtype=torch.int64)


def body_of(name: str, kind: str = "float32") -> FusedBody:
    model_class, config = MODELS[name]
    config = deepcopy(config)
    config.head_dim = 64 if kind == "int8" else config.head_dim
    model = drawn(model_class, config)
    if kind == "int8":
        quantize_linears(model)
    elif kind == "bfloat16":
        model.bfloat16()
    assert fuse_body(model, torch.bfloat16 if kind == "bfloat16" else torch.float32)
    body: FusedBody = model.model
    return body


def cache_of(body: FusedBody, kv_format: KVFormat = FLOAT32) -> KVCache:
    return KVCache(2, 2, 130, body.config.head_dim, kv_format, "cpu")


def a_step(rows: int, slot: int, position: int = 0, reads: Slots | None = None) -> SchedulerOutput:
    """Rows that are kept from `slot` on and read themselves, and what lies in the slots `reads` before them."""
    segments, at = [Segment(0, rows, slot, slot + rows, position)], 0
    for start, end in reads or []:
        segments.append(Segment(0, rows, start, end, at))
        at += end - start
    return replace(
        SchedulerOutput.causal_rows(rows),
        input_ids=np.arange(slot, slot + rows, dtype=np.int64),
        position_ids=np.arange(position, position + rows, dtype=np.int64),
        slot_mapping=np.arange(slot, slot + rows, dtype=np.int64),
        segments=Segments.of(segments),
    )


def run(replay: LoopReplay, step: SchedulerOutput) -> torch.Tensor:
    with torch.inference_mode():
        return replay.run(step, NOTHING_SAMPLED).hidden.clone()


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every repetition, how many rows it had."""
    seen: list[int] = []
    repeat = CpuStepAttention.repeat

    def counted(attention: CpuStepAttention, recording: Any) -> None:
        seen.append(len(attention.asked_rows))
        repeat(attention, recording)

    monkeypatch.setattr(CpuStepAttention, "repeat", counted)
    return seen


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", pytest.param("int8", marks=BYTES)])
def test_a_repeated_step_gives_what_it_gives_anew(name: str, kind: str, repeats: list[int]) -> None:
    """What it reads and where it writes are its own. Another number of rows, or of asked rows, begins anew."""
    body, kept = body_of(name, kind), {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8_ROWS}[kind]
    two_asked = Reads.samples(np.array([3, 19]), np.array([0, 1]))
    steps = [
        a_step(20, 0),  # buffers grow, so its calls cannot be made again
        a_step(20, 30, 20, [(0, 20)]),
        a_step(20, 60, 12, [(0, 8), (30, 34)]),
        replace(a_step(20, 85, 4, [(3, 7)]), reads=two_asked),
        replace(a_step(20, 85, 12, [(0, 8), (60, 64)]), reads=two_asked),
        a_step(5, 110),
        a_step(5, 115, 5, [(110, 115)]),
    ]
    replay, attention = LoopReplay(body, CpuAttention(cache_of(body, kept))), CpuAttention(cache_of(body, kept))
    again = [run(replay, step) for step in steps]
    assert repeats == [20, 2, 5]
    anew = [run(LoopReplay(body, attention), step) for step in steps]
    assert repeats == [20, 2, 5]
    assert all(torch.equal(one, other) for one, other in zip(again, anew, strict=True))
    assert not torch.equal(again[0], again[1])


def grow_workspace(body: FusedBody, cache: KVCache) -> None:
    body.workspace.rows("gated", 10_000, 100, torch.float32)


def grow_own_rows(body: FusedBody, cache: KVCache) -> None:
    cache.own(10_000)


def narrow_window(body: FusedBody, cache: KVCache) -> None:
    body.layers[1].attention.sliding_window = 3


def take_a_layer(body: FusedBody, cache: KVCache) -> None:
    body.layers = body.layers[:1]


@pytest.mark.parametrize("change", [grow_workspace, grow_own_rows, narrow_window, take_a_layer])
def test_a_step_is_not_repeated_where_something_moved(
    change: Callable[[FusedBody, KVCache], None], repeats: list[int]
) -> None:
    body = body_of("Mistral with a window")
    cache = cache_of(body)
    replay, step = LoopReplay(body, CpuAttention(cache)), a_step(6, 10)
    before = [run(replay, step) for _ in range(3)][-1]
    assert len(repeats) == 1
    change(body, cache)
    changed = run(replay, step)
    assert len(repeats) == 1
    assert torch.equal(changed, run(LoopReplay(body, CpuAttention(cache_of(body))), step))
    assert torch.equal(changed, before) == (change in (grow_workspace, grow_own_rows))
    assert torch.equal(run(replay, step), changed)
    assert len(repeats) == 2, "from the next step on it is"


def test_tokens_in_flight_are_what_the_step_before_sampled() -> None:
    body = body_of("Llama")
    replay, step = LoopReplay(body, CpuAttention(cache_of(body))), a_step(3, 10)
    wanted = run(replay, step)
    in_flight = replace(step, input_ids=np.array([-2, 11, -1], dtype=np.int64))
    with torch.inference_mode():
        assert torch.equal(replay.run(in_flight, torch.tensor([12, 10])).hidden, wanted)
