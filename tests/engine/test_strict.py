"""`determinism: strict`: the same bits in any order, beside any rows, under any budget, policy, step and threads."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import SHARING, EngineConfig
from engine.errors import UserError
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.model.checkpoint import load_shape, resolve_model
from engine.pooling_params import PoolingParams
from engine.request import Request, RequestOutput
from engine.sampling_params import SamplingParams
from engine.scheduling import learnt_lengths
from examples.adapters import write_adapter
from kernels.kv_format import BFLOAT16, FLOAT32
from tests.engine.families import SERVED, save_tiny
from tests.engine.oracle import Oracle
from tests.engine.test_adapters import drawn
from tests.engine.tiny_adapters import llama_linears

VOCAB = 384
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
# The layers of a llama are our own; those of the others are transformers', on our products and attention.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
}
PRECISIONS = [("float32", "none"), ("bfloat16", "none"), ("float32", "int8"), ("bfloat16", "int8")]
# The longest request holds 190 tokens.
TIGHT_TOKENS = 224


def make_requests() -> list[Request]:
    """All that may be asked, on a trie of three levels whose nodes end anywhere."""
    draw = np.random.default_rng(5)

    def tokens(count: int) -> list[int]:
        return draw.integers(3, VOCAB, count).tolist()  # type: ignore[no-any-return]

    roots = [tokens(37), tokens(90)]
    stems = [root + tokens(size) for root in roots for size in (0, 21, 50)] + [[]]
    labels = tuple(np.array(tokens(size), dtype=np.int32) for size in (1, 2, 4, 3))
    repeated = tokens(4)
    ways: list[dict[str, Any]] = [
        {"params": SamplingParams(max_tokens=9, logprobs=2, ignore_eos=True)},
        {"params": SamplingParams(max_tokens=24, ignore_eos=True)},
        {"labels": labels},
        {"params": SamplingParams(max_tokens=8, temperature=0.9, top_p=0.9, top_k=40, seed=3, logprobs=0)},
        {"params": SamplingParams(max_tokens=6, temperature=1.2, min_p=0.02)},
        {"labels": labels[:2], "prompt_logprobs_from": 1, "params": SamplingParams(prompt_logprobs=3)},
        {"labels": (), "pooling": PoolingParams("mean")},
        {"labels": (), "pooling": PoolingParams("weighted")},
        {"params": SamplingParams(max_tokens=8, repetition_penalty=1.3, frequency_penalty=0.2, logprobs=1)},
    ]
    requests = []
    for row in range(27):
        prompt = stems[draw.integers(len(stems))] + tokens(int(draw.integers(1, 30)))
        if row % 9 == 1:  # drafts foretell what repeats itself
            prompt += repeated * 6
        requests.append(Request(str(row), np.array(prompt, dtype=np.int32), **ways[row % len(ways)]))
    return requests


REQUESTS = make_requests()


def bits(output: RequestOutput) -> tuple[Any, ...]:
    """Every number of an answer; what was cached is no part of it."""
    read, embedding = output.prompt_logprobs, output.embedding
    assert output.finish_reason != "error", output
    return (
        output.token_ids,
        output.finish_reason,
        None if output.cumulative_logprob is None else output.cumulative_logprob.hex(),
        [(one.token_id, one.logprob.hex(), [(t, x.hex()) for t, x in one.top]) for one in output.logprobs or ()],
        [(float(score.logprob).hex(), score.is_greedy) for score in output.label_scores or ()],
        None if read is None else (read.logprobs.tobytes(), read.is_greedy.tobytes(), read.top_tokens.tobytes()),
        None if read is None else read.top_logprobs.tobytes(),
        None if embedding is None else embedding.tobytes(),
    )


@dataclass(frozen=True)
class Arrangement:
    """Which of the requests run together, in which order, and how."""

    rows: tuple[int, ...]
    sharing: str
    step_tokens: int
    threads: int
    is_tight: bool
    block_size: int = 16

    def run(self, folder: Path, config: EngineConfig) -> dict[str, RequestOutput]:
        files = resolve_model(str(folder))
        if self.is_tight:
            config = replace(config, kv_cache_memory=TIGHT_TOKENS * load_shape(files).kv_bytes_per_token(FLOAT32))
        config = replace(
            config,
            sharing=self.sharing,  # type: ignore[arg-type]
            max_num_batched_tokens=self.step_tokens,
            block_size=self.block_size,
        )
        requests = [REQUESTS[row] for row in self.rows]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", str(self.threads))
            engine = build_engine(files, config, detokenize=False)
        try:
            outputs = run_plan(engine, plan_requests(engine, requests), requests)
            engine.scheduler.check_integrity()
        finally:
            engine.close()
        return {output.request_id: output for output in outputs}


ALL = tuple(range(len(REQUESTS)))
PLAIN = Arrangement(ALL, "none", 1024, 1, is_tight=False)
ARRANGEMENTS = st.builds(
    Arrangement,
    rows=st.permutations(ALL).flatmap(lambda rows: st.integers(1, len(rows)).map(lambda n: tuple(rows[-n:]))),
    sharing=st.sampled_from(SHARING),
    step_tokens=st.sampled_from([16, 64, 1024]),
    threads=st.sampled_from([1, 2]),
    is_tight=st.booleans(),
    block_size=st.sampled_from([1, 16]),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    for name, config in FAMILIES.items():
        save_tiny(name, COMMON | config, folders[name])
    return folders


@cache
def known(folder: Path, config: EngineConfig) -> dict[str, RequestOutput]:
    """What each request is answered with nothing shared, by one thread."""
    return PLAIN.run(folder, config)


def strict(dtype: Any, quantization: Any) -> EngineConfig:
    return EngineConfig(dtype=dtype, quantization=quantization, kv_cache_memory=2**23, determinism="strict")


def assert_same_bits(folder: Path, arranged: Arrangement, config: EngineConfig) -> None:
    expected = known(folder, config)
    for name, output in arranged.run(folder, config).items():
        assert bits(output) == bits(expected[name]), (name, arranged)


def hold(folder: Path, precision: tuple[str, str], max_examples: int) -> None:
    """The property, over so many drawn arrangements."""

    @settings(max_examples=max_examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(arranged=ARRANGEMENTS)
    def check(arranged: Arrangement) -> None:
        assert_same_bits(folder, arranged, strict(*precision))

    check()


CASES = [
    pytest.param(family, precision, id=f"{family}-{'-'.join(precision)}")
    for family in FAMILIES
    for precision in (PRECISIONS if family == "llama" else PRECISIONS[:1])
]


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_same_bits_in_any_arrangement(models: dict[str, Path], family: str, precision: tuple[str, str]) -> None:
    hold(models[family], precision, 2 if family == "llama" else 1)


def ending_early() -> list[Request]:
    """Texts that may have 100 tokens, each of which ends one with a probability of some tenth; half of them greedy."""
    draw = np.random.default_rng(7)
    stem = draw.integers(3, VOCAB, 20).tolist()
    stops = tuple(draw.choice(VOCAB, VOCAB // 12, replace=False).tolist())
    common: dict[str, Any] = {"max_tokens": 100, "stop_token_ids": stops, "ignore_eos": True, "logprobs": 1}
    ways = [SamplingParams(**common), SamplingParams(**common, temperature=1.0, seed=4)]
    return [
        Request(str(row), np.array(stem + draw.integers(3, VOCAB, 5).tolist(), dtype=np.int32), ways[row % 2])
        for row in range(24)
    ]


@pytest.mark.parametrize("precision", [PRECISIONS[0], PRECISIONS[3]], ids="-".join)
def test_same_bits_whoever_gives_way(
    models: dict[str, Path], precision: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed a token at a time is computed again in one piece."""
    monkeypatch.setattr(learnt_lengths, "FIRST_ENDS", 2)
    files, requests = resolve_model(str(models["llama"])), ending_early()
    token_bytes = load_shape(files).kv_bytes_per_token(FLOAT32 if precision[0] == "float32" else BFLOAT16)
    found = []
    for kv_tokens in (4096, 192):
        config = replace(strict(*precision), kv_cache_memory=kv_tokens * token_bytes)
        engine = build_engine(files, config, detokenize=False)
        try:
            outputs = run_plan(engine, plan_requests(engine, requests), requests)
            found.append(({output.request_id: bits(output) for output in outputs}, engine.counters().preemptions))
        finally:
            engine.close()
    (roomy, none), (tight, preemptions) = found
    assert tight == roomy
    assert none == 0 < preemptions


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", PRECISIONS, ids="-".join)
def test_same_bits_in_many_arrangements(models: dict[str, Path], family: str, precision: tuple[str, str]) -> None:
    hold(models[family], precision, 60)


@pytest.mark.parametrize("row", [0, 2])
def test_same_bits_alone(models: dict[str, Path], row: int) -> None:
    assert_same_bits(
        models["llama"], Arrangement((row,), "multi_level", 16, 2, is_tight=True), strict("float32", "none")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_transformers(models: dict[str, Path], family: str) -> None:
    """Greedy texts and labels, and all values near those of the default mode."""
    oracle, config = Oracle(models[family]), strict("float32", "none")
    ours = known(models[family], config)
    for request in REQUESTS:
        if request.labels or (
            request.labels is None and request.params == SamplingParams(max_tokens=24, ignore_eos=True)
        ):
            oracle.assert_same(request, ours[request.request_id])


def test_the_default_moves_within_its_tolerance(models: dict[str, Path]) -> None:
    """The other mode, whose last bits are free: they are others, or the tests above would hold anything."""
    config = replace(strict("float32", "none"), determinism="default")
    rows = tuple(row for row in ALL if REQUESTS[row].labels is not None)
    one = Arrangement(rows, "none", 1024, 1, is_tight=False).run(models["llama"], config)
    other = Arrangement(rows[::-1], "multi_level", 64, 2, is_tight=True).run(models["llama"], config)
    assert any(bits(output) != bits(other[name]) for name, output in one.items())
    for name, output in one.items():
        for a, b in zip(output.label_scores or (), other[name].label_scores or (), strict=True):
            assert abs(a.logprob - b.logprob) < 1e-3
        if output.embedding is not None and other[name].embedding is not None:
            assert np.abs(output.embedding - other[name].embedding).max() < 1e-4


def test_what_cannot_be_held_is_refused_by_name(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    files = resolve_model(str(models["llama"]))
    config = strict("float32", "none")
    with pytest.raises(UserError, match=r"engine.determinism: strict has no loops for float16; take model.dtype"):
        build_engine(files, replace(config, dtype="float16"), detokenize=False)
    monkeypatch.setattr("engine.machine.device.cuda_devices", lambda: 1)
    with pytest.raises(UserError, match=r"engine.determinism: strict is for the CPU alone; take engine.device: cpu"):
        build_engine(files, replace(config, device="cuda"), detokenize=False)


@pytest.mark.parametrize(
    ("family", "said"), [("gpt2", "h.0.attn.c_attn, a Conv1D"), ("mixtral", "mlp.gate, a MixtralTopKRouter")]
)
def test_layers_that_no_loop_computes_are_refused_by_name(family: str, said: str, tmp_path: Path) -> None:
    config = next(known.config for known in SERVED if known.model_type == family)
    save_tiny(family, config, tmp_path)
    with pytest.raises(UserError, match=f"engine.determinism: strict has no loop for .*{said}.*; take default"):
        build_engine(resolve_model(str(tmp_path)), strict("float32", "none"), detokenize=False)


def test_a_row_with_an_adapter_has_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    save_tiny("llama", COMMON | {"vocab_size": 512, "num_key_value_heads": 2}, tmp_path / "base")
    linears = llama_linears(64, 64, 32, 96, 2)
    folders = [str(write_adapter(tmp_path / str(n), linears, n, rank=4 + 9 * n)) for n in range(3)]
    requests = drawn([None, *folders], rows=20)
    engine = build_engine(resolve_model(str(tmp_path / "base")), strict("float32", "none"), detokenize=False)
    together = {
        output.request_id: bits(output) for output in run_plan(engine, plan_requests(engine, requests), requests)
    }
    for part in ([request] for request in requests[::3]):
        [alone] = run_plan(engine, plan_requests(engine, part), part)
        assert bits(alone) == together[alone.request_id]
    engine.close()


def test_adapters_of_layers_that_are_not_ours_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = str(write_adapter(tmp_path / "adapter", llama_linears(64, 64, 32, 96, 2), 0, rank=4))
    engine = build_engine(resolve_model(str(models["qwen3"])), strict("float32", "none"), detokenize=False)
    with pytest.raises(UserError, match=r"engine.determinism: strict adds adapters in layers of our own alone"):
        engine.runner.adapters.sizes([folder])
    engine.close()
