"""The benchmark: what it times computes what it should, and it refuses a machine without a GPU."""

import gc
import subprocess
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.attention_inputs import AttentionInputs
from kernels.gpu import bench
from kernels.gpu.attention.attention_shape import AttentionShape
from kernels.gpu.attention.launch_tables import launch_tables
from kernels.gpu.attention.prefix_attention import prefix_shared_attention

ROOT = Path(__file__).parents[3]


def test_both_sides_are_given_the_same_problem() -> None:
    """Ours over a shared prefix, torch's over copies side by side."""
    step = bench.decode(48, 3, 16, "cpu")
    shape = AttentionShape(bench.HEADS, bench.KV_HEADS, bench.DIM, bench.PAGE)
    empty = torch.zeros(3, bench.KV_HEADS, bench.DIM, dtype=torch.bfloat16)
    tables = launch_tables(step.segments, step.positions, shape, "cpu", processors=64)
    inputs = AttentionInputs(step.query, empty, empty, step.key_cache, step.value_cache)
    out, _ = prefix_shared_attention(tables, inputs, step.scale)
    theirs = bench.torch_attention(step)()
    assert float((out.float() - theirs.float()).abs().max()) < 3e-2


def test_bytes_and_operations_are_those_of_the_step() -> None:
    step = bench.decode(48, 3, 16, "cpu")
    tokens = len(np.unique(np.concatenate([np.arange(48), np.arange(48, 48 + 3 * 16)])))
    assert step.key_cache.shape[0] * bench.PAGE == tokens
    assert step.kv_bytes == step.key_cache.nbytes + step.value_cache.nbytes
    assert step.flops == 3 * 64 * bench.HEADS * bench.DIM * 2 * 2


def test_what_a_graph_reads_lives_as_long_as_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def replay(self) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def attend() -> tuple[bench.Run, weakref.ref[torch.Tensor]]:
        read = torch.ones(3)
        return lambda: read * 2, weakref.ref(read)

    run, read = attend()
    graph = bench.captured(run)
    del run
    gc.collect()
    assert read() is not None
    assert graph().tolist() == [2, 2, 2]
    del graph
    gc.collect()
    assert read() is None


def test_nothing_is_timed_that_computes_something_else() -> None:
    ones = torch.ones(2, 3)
    assert bench.held_together(ones, ones + 0.01, "torch") == pytest.approx(0.01, rel=1e-3)
    for wrong in (ones + 1, ones * torch.nan):
        with pytest.raises(SystemExit, match="torch: differs by"):
            bench.held_together(wrong, ones, "torch")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand, and would be timed")
def test_it_refuses_a_machine_without_a_gpu() -> None:
    done = subprocess.run([sys.executable, "-m", "kernels.gpu.bench"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "this machine has none" in done.stderr
