"""Tuning: candidates are timed once, by the device's clock, and engines take what was kept."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.gpu.attention.attention_shape import AttentionShape
from kernels.gpu.attention.launch_tables import launch_tables
from kernels.gpu.tune import DECODE_ROWS, WIDEST, Step, decoding, prefill, tune_all
from kernels.gpu.tuning import attention_config as table
from kernels.gpu.tuning import tuned
from kernels.gpu.tuning.attention_config import ATTENTION, SAFE, AttentionConfig
from kernels.gpu.tuning.tuned import DECODE, choose_config, tune

ROOT = Path(__file__).parents[3]
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
CANDIDATES = ATTENTION["sm_90"][128]
SHAPE = AttentionShape(32, 8, 128, 64)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An H100 as far as its name goes, and an empty cache."""
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    for module in (table, tuned):
        monkeypatch.setattr(module, "architecture", lambda _: "sm_90")
    return tmp_path / "tuning"


def test_without_tuning_the_table_says(cache: Path) -> None:
    assert choose_config(GPU, 128, 64) == CANDIDATES[0]
    assert choose_config(GPU, 128, 65) == CANDIDATES[1]
    assert choose_config(GPU, 128, DECODE) == CANDIDATES[0]
    assert not cache.exists()


def test_every_kind_of_step_is_timed_with_every_candidate_and_kept(cache: Path) -> None:
    """The last is the fastest for those that decode, the first for all others: the table's choices turned round."""
    timed: list[tuple[int, AttentionConfig]] = []

    def time(step: Step, shape: AttentionShape, config: AttentionConfig) -> float:
        timed.append((len(step.positions), config))
        return float(-config.large if len(step.positions) == DECODE_ROWS and step.slots > 2048 else config.large)

    kept = dict(tune_all(SHAPE, GPU, time))
    assert kept == {DECODE: CANDIDATES[-1]} | dict.fromkeys(WIDEST, CANDIDATES[0])
    rows = [DECODE_ROWS, *(widest // 4 for widest in WIDEST)]
    assert timed == [(count, config) for count in rows for config in CANDIDATES]
    assert choose_config(GPU, 128, DECODE) == CANDIDATES[-1]
    assert choose_config(GPU, 128, 65) == CANDIDATES[0]
    assert choose_config(GPU, 128, 10_000) == CANDIDATES[1]  # beyond what was timed
    assert choose_config(GPU, 96, 65) == ATTENTION["sm_90"][96][1]


def test_what_is_not_whole_or_of_another_table_is_not_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(GPU, 128, 128, lambda config: float(config.large))
    (path,) = cache.iterdir()
    assert path.name.startswith("NVIDIA-H100-80GB-HBM3-triton")
    assert choose_config(GPU, 128, 128) == CANDIDATES[0]
    path.write_text('{"small": 16')
    tuned.forget()
    assert choose_config(GPU, 128, 128) == CANDIDATES[1]
    tune(GPU, 128, 128, lambda config: float(config.large))
    changed = (*CANDIDATES, SAFE)
    monkeypatch.setitem(ATTENTION["sm_90"], 128, changed)
    tuned.forget()
    assert choose_config(GPU, 128, 128) == CANDIDATES[1]


def test_a_cache_that_cannot_be_written_costs_the_choice_alone(cache: Path) -> None:
    cache.write_text("")
    assert tune(GPU, 128, 128, lambda config: float(config.large)) == CANDIDATES[0]
    assert choose_config(GPU, 128, 128) == CANDIDATES[1]


def test_a_processor_takes_the_safe_default() -> None:
    assert choose_config(CPU, 128, 64) == choose_config(CPU, 128, DECODE) == SAFE


def test_a_launch_takes_what_was_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no configuration is named: in the engine."""
    chosen: list[tuple[int, int]] = []

    def choose(device: torch.device, dim: int, widest: int) -> AttentionConfig:
        chosen.append((dim, widest))
        return CANDIDATES[1]

    monkeypatch.setattr("kernels.gpu.attention.launch_tables.choose_config", choose)
    step = prefill(6)
    assert launch_tables(step.segments, step.positions, SHAPE, "cpu").config == CANDIDATES[1]
    assert chosen == [(128, 6 * 4)]


@pytest.mark.parametrize("step", [prefill(3), decoding()], ids=["prefill", "decoding"])
def test_a_step_reads_no_slot_that_its_cache_does_not_have(step: Step) -> None:
    cached = ~step.segments.in_step
    assert int(step.segments.kv_end[cached].max()) == step.slots
    assert step.slots % 64 == 0
    last = step.segments.position + step.segments.kv_end - step.segments.kv_start - 1
    assert int(last.max()) == int(step.positions.max())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand, and would be timed")
def test_it_refuses_a_machine_without_a_gpu() -> None:
    done = subprocess.run([sys.executable, "-m", "kernels.gpu.tune"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "kernels.gpu.tune times a GPU and this machine has none\n"
