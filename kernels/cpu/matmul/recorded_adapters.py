"""Calls of loops that read adapters, made again for a step whose rows run with others."""

from kernels.cpu.language.openmp import Recording
from kernels.cpu.matmul import adapter_shrink, matmul
from kernels.paged_adapters import AdapterRuns


def change_adapters(recording: Recording, runs: AdapterRuns) -> None:
    """Makes products that were recorded add what `runs` say, of as many rows and the same greatest rank."""
    for loop in (adapter_shrink.LOOP, matmul.LOOP):
        recording.change(loop, runs=runs.table, next_run=runs.next_run, num_runs=runs.num_runs)
