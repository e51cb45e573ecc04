"""Keys and values in 8-bit floats, through Triton's interpreter, against the same attention with a float32 cache."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import engine.machine.device
from engine.config import EngineConfig
from engine.errors import UserError
from engine.forward.gpu.attention import GpuAttention, Rotation
from engine.forward.kv_cache import KVCache
from engine.forward.kv_scales import KVScales, calibrate_kv_scales, scale_of
from engine.forward.load import load_model
from engine.forward.step_attention import Scoring
from engine.forward.step_inputs import step_inputs
from engine.machine.device import resolve_device
from engine.model.checkpoint import load_shape, resolve_model
from engine.request import Request
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.gpu.attention.kv_write import HeadNorms
from kernels.kv_format import FLOAT32, FP8
from kernels.segments import Segment, Segments
from tests.engine.forward.gpu.test_attention import answers, requests_, through_triton  # noqa: F401
from tests.engine.forward.played_gpu import played_gpu

HEADS, KV_HEADS, DIM, ROWS = 4, 2, 32, 12
# float8_e4m3fn rounds a number by a sixteenth of it at most. A mean of values is then off by less than a sixteenth of
# the largest, and what keys do to the weights of so few rows stays below as much again.
TOLERANCE = 2 / 16


Rows = tuple[Tensor, Tensor, Tensor]


def made(seed: int) -> Rows:
    """Query, key and value of `ROWS` rows; the second KV head's are a hundred times the first's, or a hundredth."""
    draw = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(heads, ROWS, DIM, generator=draw) for heads in (HEADS, KV_HEADS, KV_HEADS))
    return query, key * torch.tensor([1.0, 0.01])[:, None, None], value * torch.tensor([1.0, 100.0])[:, None, None]


def steps() -> list[SchedulerOutput]:
    """One that writes slots 0 to 11, and one whose rows read those, and their own."""
    causal = SchedulerOutput.causal_rows(ROWS)
    segments = Segments.of([Segment(0, ROWS, 0, ROWS, 0), Segment(0, ROWS, 0, ROWS, ROWS, in_step=True)])
    first = replace(causal, slot_mapping=np.arange(ROWS))
    second = replace(causal, slot_mapping=np.arange(ROWS) + 16, position_ids=np.arange(ROWS) + ROWS, segments=segments)
    return [first, second]


def attended(cache: KVCache, rotation: Rotation | None, rows: Sequence[Rows] = (made(0), made(1))) -> Tensor:
    """(2 steps, rows, heads, dim), of layer 1 of 2."""
    results = []
    for given, step in zip(rows, steps(), strict=True):
        attention = GpuAttention(cache).prepare(step, step_inputs(step, "cpu"))
        scoring = Scoring(DIM**-0.5)
        if rotation is None:
            results.append(attention.run(1, *given, scoring))
        else:
            results.append(attention.run_rotated(1, *given, scoring, rotation))
    return torch.stack(results)


def rotation_of(*, normed: bool) -> Rotation:
    angles = torch.arange(ROWS)[:, None] * torch.logspace(0, -2, DIM // 2).repeat(2)
    norms = HeadNorms(torch.ones(DIM), torch.ones(DIM), 1e-6) if normed else None
    return Rotation(angles.cos(), angles.sin(), norms)


@pytest.mark.parametrize(
    "rotation", [None, rotation_of(normed=False), rotation_of(normed=True)], ids=["run", "rotated", "normed"]
)
def test_attention_is_near_that_with_a_float32_cache(rotation: Rotation | None) -> None:
    """Keys of the step itself and of the cache, each head with its own scale; what is written are 8 bits."""
    seen = [torch.stack([made(seed)[place] for seed in (0, 1)]) for place in (1, 2)]
    if rotation is not None and rotation.norms is not None:
        seen[0] = torch.full_like(seen[0], 4.0)
    scales = KVScales(*(scale_of(tensor).expand(2, KV_HEADS).contiguous() for tensor in seen))
    caches = [KVCache(2, KV_HEADS, 64, DIM, FLOAT32, "cpu"), KVCache(2, KV_HEADS, 64, DIM, FP8, "cpu", scales)]
    for kept in (*caches[0].keys, *caches[0].values):
        kept.fill_(torch.nan)
    for kept in (*caches[1].keys, *caches[1].values):
        kept.view(torch.uint8).fill_(0x7F)  # float8's nan
    wanted, got = (attended(cache, rotation) for cache in caches)
    for head in range(HEADS):
        largest = seen[1][:, head * KV_HEADS // HEADS].abs().max()
        error = float((got[:, :, head] - wanted[:, :, head]).abs().max() / largest)
        assert 0 < error < TOLERANCE
    for kept, exact, scale in zip(
        (caches[1].keys[1], caches[1].values[1]),
        (caches[0].keys[1], caches[0].values[1]),
        (scales.keys[1], scales.values[1]),
        strict=True,
    ):
        numbers, whole = kept[:, :ROWS].float() * scale[:, None, None], exact[:, :ROWS]
        assert float(((numbers - whole).abs() / whole.abs().clamp_min(1e-3 * float(whole.abs().max()))).max()) < 0.07


@pytest.mark.fault(18)
@pytest.mark.parametrize("rotation", [None, rotation_of(normed=False)], ids=["run", "rotated"])
@pytest.mark.parametrize("place", [1, 2], ids=["key", "value"])
def test_what_is_no_number_is_read_as_none(rotation: Rotation | None, place: int) -> None:
    """By the rows behind it of its own step, and by all of the next, through the cache; never by another head."""
    parts = list(made(0))
    parts[place] = parts[place].clone()
    parts[place][0, 3, 5] = torch.nan
    ones = torch.ones(2, KV_HEADS)
    cache = KVCache(2, KV_HEADS, 64, DIM, FP8, "cpu", KVScales(ones, ones))
    got = attended(cache, rotation, [tuple(parts), made(1)])
    group = HEADS // KV_HEADS
    column = slice(None) if place == 1 else 5
    assert bool(got[0, 3:, :group, column].isnan().all())
    assert bool(got[1, :, :group, column].isnan().all())
    assert bool(got[:, :, group:].isfinite().all())


def test_the_engine_gives_nearly_the_same(
    tiny_model: Path,
    requests_: list[Request],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prefill, chunks, shared prefixes and captured decode steps, in fused layers: log-likelihoods move by 1.2 %."""
    played, exact = through_triton(tiny_model, requests_, monkeypatch, "none", "fp8"), answers(tiny_model, requests_)
    # Two layers of the probe with all bits, as transformers wrote them; then every layer rotates as it writes.
    assert played.rotated[:2] == [False, False]
    assert all(played.rotated[2:])
    assert sum(played.replays) > len(played.replays) > 0
    for key, output in exact.items():
        # A model of random weights is all but undecided: texts part where its two best tokens are that near.
        assert output.token_ids[:1] == played.outputs[key].token_ids[:1]
        if output.label_scores is not None:
            theirs = played.outputs[key].label_scores
            assert theirs is not None
            pairs = zip(output.label_scores, theirs, strict=True)
            moved = [abs(got.logprob / wanted.logprob - 1) for wanted, got in pairs]
            assert 1e-6 < max(moved) < 0.02


def test_scales_are_powers_of_two_that_leave_room_above_what_was_seen(tiny_model: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    shape = load_shape(resolve_model(str(tiny_model)))
    scales = calibrate_kv_scales(model, shape)
    tokens = torch.randint(shape.vocab_size, (2, 256), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        cache = model(input_ids=tokens[:, : shape.max_model_len], use_cache=True).past_key_values
    for layer, kept in enumerate(cache.layers):
        for made_, scale in ((kept.keys, scales.keys[layer]), (kept.values, scales.values[layer])):
            assert torch.equal(scale.log2().round(), scale.log2())
            steps_ = made_.abs().amax((0, 2, 3)) / scale
            assert bool(((steps_ > 8 - 1e-3) & (steps_ < 16 + 1e-3)).all())


def test_the_budget_holds_four_times_the_tokens_of_float32(tiny_model: Path) -> None:
    loaded = load_model(resolve_model(str(tiny_model)), played_gpu(), "none", "fp8")
    assert loaded.kv_format == FP8
    shape = loaded.shape
    assert 4 * shape.kv_bytes_per_token(FP8) == shape.kv_bytes_per_token(FLOAT32)


def test_a_cpu_has_no_such_cache() -> None:
    with pytest.raises(UserError, match=r"model\.kv_cache_dtype: fp8 is for GPUs alone; take auto"):
        resolve_device(EngineConfig(device="cpu", kv_cache_dtype="fp8"))


@pytest.mark.parametrize(("capability", "served"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_a_gpu_has_it_with_fp8_units(
    capability: tuple[int, int], served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.machine.device, "cuda_devices", lambda: 1)
    monkeypatch.setattr(engine.machine.device, "backend_of", lambda _: "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A card")
    config = EngineConfig(device="cuda", kv_cache_dtype="fp8")
    if served:
        assert resolve_device(config).name == "cuda:0"
    else:
        with pytest.raises(UserError, match=r"kv_cache_dtype: A card has no FP8 units \(they came with 8\.9\)"):
            resolve_device(config)


def test_a_gpu_without_triton_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.machine.device, "cuda_devices", lambda: 1)
    monkeypatch.setattr(engine.machine.device, "backend_of", lambda _: "torch")
    with pytest.raises(UserError, match=r"kv_cache_dtype: fp8 on cuda needs Triton"):
        resolve_device(EngineConfig(device="cuda", kv_cache_dtype="fp8"))
