"""The benchmark: what it times computes what it should, and it refuses a machine without a GPU."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels import bench
from kernels.prefix_attention import run
from kernels.prefix_plan import AttentionShape, plan

ROOT = Path(__file__).parents[2]


def test_both_sides_are_given_the_same_problem() -> None:
    """Ours over a shared prefix, torch's over copies side by side."""
    step = bench.decode(48, 3, 16, "cpu")
    shape = AttentionShape(bench.HEADS, bench.KV_HEADS, bench.DIM, bench.PAGE)
    empty = torch.zeros(3, bench.KV_HEADS, bench.DIM, dtype=torch.bfloat16)
    made = plan(step.segments, step.positions, shape, "cpu", processors=64)
    out, _ = run(made, step.query, empty, empty, step.key_cache, step.value_cache, step.scale)
    theirs = bench.torch_attention(step)()
    assert float((out.float() - theirs.float()).abs().max()) < 3e-2


def test_bytes_and_operations_are_those_of_the_step() -> None:
    step = bench.decode(48, 3, 16, "cpu")
    tokens = len(np.unique(np.concatenate([np.arange(48), np.arange(48, 48 + 3 * 16)])))
    assert step.key_cache.shape[0] * bench.PAGE == tokens
    assert step.kv_bytes == step.key_cache.nbytes + step.value_cache.nbytes
    assert step.flops == 3 * 64 * bench.HEADS * bench.DIM * 2 * 2


def test_nothing_is_timed_that_computes_something_else() -> None:
    ones = torch.ones(2, 3)
    assert bench.held_together(ones, ones + 0.01, "torch") == pytest.approx(0.01, rel=1e-3)
    for wrong in (ones + 1, ones * torch.nan):
        with pytest.raises(SystemExit, match="torch: differs by"):
            bench.held_together(wrong, ones, "torch")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand, and would be timed")
def test_it_refuses_a_machine_without_a_gpu() -> None:
    done = subprocess.run([sys.executable, "-m", "kernels.bench"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "this machine has none" in done.stderr
