"""Adapters' weights in the KV cache's memory: brought in, found by kernels, and overwritten when they made room."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.forward.adapter_sites import AdapterSite
from engine.forward.kv_cache import KVCache
from engine.forward.step_inputs import to_device
from engine.machine.adapter_pages import AdapterPages
from engine.machine.out_of_memory import is_out_of_memory
from engine.model.adapter_config import AdapterError
from engine.model.adapter_files import WEIGHTS, AdapterFiles, AdapterTarget, named_adapter, weight_names
from engine.scheduling.scheduler_output import AdapterLoad, SchedulerOutput
from kernels.paged_adapters import SITE_WORDS, AdapterRuns, from_pages, in_pages, lines_of_a, lines_of_b, runs_of
from kernels.segments import Ints


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where pages are in a layer's memory: of the values rather than the keys, and which row (`AdapterPool._rows`)."""

    in_values: NDArray[np.bool_]
    rows: Ints

    def of(self, first: int, last: int) -> "Places":
        return Places(self.in_values[first:last], self.rows[first:last])


@dataclass(frozen=True, slots=True, eq=False)
class PagedMatrix:
    """Pages of one layer that hold `lines` of `width` numbers."""

    layer: int
    places: Places
    lines: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class PagedAdapter:
    """An adapter that is in: its `table` (`kernels.paged_adapters`), its greatest rank, and A and B by site."""

    table: Tensor
    rank: int
    matrices: Mapping[int, tuple[PagedMatrix, PagedMatrix]]


class AdapterPool:
    """Those of one cache. Blocks are the scheduler's to give: it says which adapter gets which, and when."""

    def __init__(
        self, cache: KVCache, pages: AdapterPages, sites: Mapping[str, AdapterSite], device: str, most_rows: int | None
    ) -> None:
        """`most_rows` of a run, if kernels take no more at once."""
        self._pages = pages
        self._sites = sites
        self._device = device
        self._most_rows = most_rows
        self._kv_heads = cache.num_kv_heads
        dtype = getattr(torch, pages.dtype)
        self._stores = [tuple(_paged(side, pages.words, dtype) for side in both) for both in _layers(cache)]
        self._adapters: dict[int, PagedAdapter] = {}
        self._to_load: dict[int, AdapterLoad] = {}
        self._problems: dict[str, str] = {}

    def change(self, step: SchedulerOutput) -> dict[str, str]:
        """Brings in what the step is the first to need. An adapter that is no longer what it was adds nothing: returns
        what has been wrong so far, by adapter.

        What a step has no memory for, or none of whose rows needs it, is brought in by the next that does.
        """
        if step.adapters is None:
            return self._problems
        for number in step.adapters.gone:
            self._adapters.pop(number, None)
            self._to_load.pop(number, None)
        self._to_load |= {load.number: load for load in step.adapters.loads}
        for number in self._to_load.keys() & set(step.adapters.of_row.tolist()):
            load = self._to_load[number]
            try:
                self._adapters[number] = self._load(load)
            except (AdapterError, OSError, SafetensorError) as problem:
                if is_out_of_memory(problem):
                    raise
                self._problems[load.adapter] = str(problem)
                self._adapters[number] = self._adding_nothing()
            del self._to_load[number]
        return self._problems

    def runs(self, of_row: Ints) -> AdapterRuns | None:
        """Of rows with these numbers, -1 for none; None where that is all."""
        runs = _cut(runs_of(of_row.tolist()), self._most_rows)
        if not runs:
            return None
        table = np.array([(first, last, self._adapters[n].table.data_ptr()) for first, last, n in runs], dtype=np.int64)
        next_run = np.searchsorted(table[:, 1], np.arange(len(of_row)), side="right")
        return AdapterRuns(
            to_device(table.reshape(-1), self._device).view(-1, 3),
            to_device(next_run, self._device),
            max(self._adapters[number].rank for _, _, number in runs),
            self._pages.words,
        )

    def tell(self, attention: Any, step: SchedulerOutput) -> None:
        """Says to a step's attention, which its layers hear, which rows run with which adapters."""
        if step.adapters is None:
            return
        attention.adapters = attention.asked_adapters = self.runs(step.adapters.of_row)
        asked = step.asked_rows
        if len(asked) < step.num_scheduled_tokens:
            attention.asked_adapters = self.runs(step.adapters.of_row[asked])

    def matrices(self, number: int, site: int) -> tuple[Tensor, Tensor] | None:
        """A (inputs, rank) and B (panels, rank, columns), gathered from their pages; None where nothing is added."""
        found = self._adapters[number].matrices.get(site)
        if found is None:
            return None
        a, b = map(self._gathered, found)
        return a, b.view(-1, found[0].width, self._pages.columns)

    def _adding_nothing(self) -> PagedAdapter:
        table = np.zeros(SITE_WORDS * len(self._sites), dtype=np.int64)
        return PagedAdapter(to_device(table, self._device), self._pages.padded_rank(1), {})

    def _load(self, load: AdapterLoad) -> PagedAdapter:
        files = named_adapter(load.adapter)
        by_layer: dict[int, list[AdapterTarget]] = defaultdict(list)
        for target in files.targets:
            by_layer[self._pages.layer_of(target.path)].append(target)
        table = np.zeros(SITE_WORDS * len(self._sites), dtype=np.int64)
        addresses: list[Ints] = []
        matrices: dict[int, tuple[PagedMatrix, PagedMatrix]] = {}
        place = len(table)
        with safe_open(files.folder / WEIGHTS, framework="pt") as weights:
            for layer, targets in by_layer.items():
                lines = [
                    self._lines(weights, target, self._pages.padded_rank(target.rank), self._sites[target.path].column)
                    for target in targets
                ]
                made = [[in_pages(matrix, self._pages.words) for matrix in both] for both in lines]
                places = self._places(load, sum(map(len, chain(*made))))
                self._write(layer, places, torch.cat(list(chain(*made))))
                addresses.append(self._addresses(layer, places))
                first = 0
                for target, both, pages in zip(targets, lines, made, strict=True):
                    site, half, last = (
                        self._sites[target.path].number,
                        first + len(pages[0]),
                        first + sum(map(len, pages)),
                    )
                    a, b = (
                        PagedMatrix(layer, places.of(*ends), *matrix.shape)
                        for matrix, ends in zip(both, ((first, half), (half, last)), strict=True)
                    )
                    matrices[site] = (a, b)
                    table[SITE_WORDS * site : SITE_WORDS * (site + 1)] = (a.width, place + first, place + half, 0)
                    first = last
                place += first
        rank = max(a.width for a, _ in matrices.values())
        return PagedAdapter(to_device(np.concatenate([table, *addresses]), self._device), rank, matrices)

    def _lines(self, weights: Any, target: AdapterTarget, rank: int, column: int) -> tuple[Tensor, Tensor]:
        """A's and B's, the scale in B."""
        a, b = (weights.get_tensor(name).float() for name in weight_names(target))
        dtype = self._stores[0][0].dtype
        b = (b * target.scale).to(dtype)
        return lines_of_a(a.to(dtype), rank), lines_of_b(b, rank, self._pages.columns, column)

    def _places(self, load: AdapterLoad, count: int) -> Places:
        """Of an adapter's first pages in a layer: its blocks' one after the other, a block's keys before its values."""
        block, page = np.divmod(np.arange(count), 2 * self._kv_heads)
        side, head = np.divmod(page, self._kv_heads)
        return Places(side == 1, head * self._stores[0][0].shape[1] + load.blocks[block])

    def _rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """Of a layer's keys and values: (kv_heads * blocks, words)."""
        keys, values = self._stores[layer]
        return keys.flatten(0, 1), values.flatten(0, 1)

    def _addresses(self, layer: int, places: Places) -> Ints:
        """Of its pages."""
        keys, values = self._rows(layer)
        starts = np.where(places.in_values, values.data_ptr(), keys.data_ptr())
        found: Ints = starts + places.rows * (self._pages.words * keys.itemsize)
        return found

    def _write(self, layer: int, places: Places, pages: Tensor) -> None:
        for rows, mine in zip(self._rows(layer), (~places.in_values, places.in_values), strict=True):
            chosen = pages.index_select(0, torch.from_numpy(np.flatnonzero(mine))).to(self._device)
            rows.index_copy_(0, to_device(places.rows[mine], self._device), chosen)

    def _gathered(self, matrix: PagedMatrix) -> Tensor:
        places = matrix.places
        pages = self._stores[matrix.layer][0].new_empty(len(places.rows), self._pages.words)
        for rows, mine in zip(self._rows(matrix.layer), (~places.in_values, places.in_values), strict=True):
            pages[to_device(np.flatnonzero(mine), self._device)] = rows[to_device(places.rows[mine], self._device)]
        return from_pages(pages, matrix.width, matrix.lines)


def check_sites(adapter: AdapterFiles, sites: Mapping[str, AdapterSite]) -> None:
    """Raises AdapterError for a target that the loaded model has no place for."""
    for target in adapter.targets:
        if target.path not in sites:
            raise AdapterError(f"is for another base: this model has no linear layer {target.path} in its body")


def _layers(cache: KVCache) -> list[tuple[Tensor, Tensor]]:
    return list(zip(cache.keys, cache.values, strict=True))


def _paged(store: Tensor, words: int, dtype: torch.dtype) -> Tensor:
    """(kv_heads, blocks, words) over the memory of keys or values (kv_heads, slots, width)."""
    return store.view(torch.uint8).view(len(store), -1, words * dtype.itemsize).view(dtype)


def _cut(runs: Sequence[tuple[int, int, int]], most: int | None) -> list[tuple[int, int, int]]:
    """Runs of at most so many rows."""
    if most is None:
        return list(runs)
    return [
        (start, min(start + most, last), number) for first, last, number in runs for start in range(first, last, most)
    ]
