"""Adapters of models whose layers are transformers' own: each linear layer's output is added to behind it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from engine.forward.adapter_pool import AdapterPool
from engine.forward.adapter_sites import AdapterSite
from engine.scheduling.scheduler_output import SchedulerOutput
from kernels.backend import Backend
from kernels.paged_adapters import AdapterRuns, runs_of


class AdapterHooks:
    """Each of the step's linear layers gets all of its rows: those of experts do not, and are refused before."""

    def __init__(self, pool: AdapterPool, sites: Mapping[str, AdapterSite], backend: Backend) -> None:
        self._pool = pool
        self._backend = backend
        self._runs: AdapterRuns | None = None
        self._by_row: list[tuple[int, int, int]] = []
        for site in sites.values():
            if site.module is not None:
                site.module.register_forward_hook(partial(self._add, site.number))

    @contextmanager
    def during(self, step: SchedulerOutput) -> Iterator[None]:
        """Layers that run within this are the step's."""
        if step.adapters is not None:
            self._by_row = runs_of(step.adapters.of_row.tolist())
            self._runs = self._pool.runs(step.adapters.of_row) if self._backend == "triton" else None
        try:
            yield
        finally:
            self._by_row, self._runs = [], None

    def _add(self, site: int, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not self._by_row:
            return
        rows, out = inputs[0].flatten(0, -2), output.flatten(0, -2)
        assert len(rows) >= self._by_row[-1][1], (len(rows), self._by_row[-1])
        assert out.data_ptr() == output.data_ptr(), "the output is changed in place"
        if self._runs is not None:
            from kernels.gpu.matmul.adapters import add_adapters  # where Triton is not installed, nothing asks for it

            add_adapters(rows, out, self._runs, site, (out.shape[1],))
            return
        for first, last, number in self._by_row:
            found = self._pool.matrices(number, site)
            if found is not None:
                a, b = found
                made = (rows[first:last].to(a.dtype) @ a) @ b  # (panels, rows, columns)
                out[first:last] += made.transpose(0, 1).flatten(1)[:, : out.shape[1]]
