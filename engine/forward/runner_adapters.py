"""What a runner knows of adapters: what each takes, which are in memory, and which rows of a step run with which."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

from engine.adapter_size import AdapterSize
from engine.config import EngineConfig
from engine.errors import UserError
from engine.forward.adapter_hooks import AdapterHooks
from engine.forward.adapter_pool import AdapterPool, check_sites
from engine.forward.adapter_sites import AdapterSite, adapter_sites
from engine.forward.kv_cache import KVCache
from engine.forward.loaded_model import LoadedModel
from engine.machine.adapter_pages import AdapterPages, size_in_cache
from engine.machine.device import Device
from engine.model.adapter_config import AdapterError
from engine.model.adapter_files import named_adapter
from engine.scheduling.scheduler_output import SchedulerOutput

# Rows that a program of a GPU's kernels takes of a run.
GPU_ROWS = 16


class RunnerAdapters:
    """Nothing is made before the first adapter is asked for."""

    def __init__(self, model: LoadedModel, cache: KVCache, config: EngineConfig, device: Device) -> None:
        self._model = model
        self._cache = cache
        self._config = config
        self._device = device
        self._sizes: dict[str, AdapterSize] = {}
        self._problems: dict[str, str] = {}

    def sizes(self, names: Iterable[str]) -> dict[str, AdapterSize]:
        """Of adapters by `AdapterFiles.name`, or folder. Raises UserError for one that cannot run here."""
        return {name: self._size(name) for name in names}

    def change(self, step: SchedulerOutput) -> None:
        """Brings in the weights that the step is the first to need, over what made room for them."""
        if step.adapters is not None:
            self._problems |= self._pool.change(step)

    def problem_of(self, adapter: str | None) -> str | None:
        """What was wrong when its weights were brought in: from then on no row that runs with it has an answer."""
        return None if adapter is None else self._problems.get(adapter)

    def tell(self, attention: Any, step: SchedulerOutput) -> None:
        """Says to fused layers, by the step's attention, which rows run with which adapters."""
        if step.adapters is not None:
            self._pool.tell(attention, step)

    @contextmanager
    def during(self, step: SchedulerOutput, attention: Any) -> Iterator[None]:
        """The step's layers run within this, whoever wrote them."""
        self.tell(attention, step)
        with nullcontext() if step.adapters is None else self._hooks.during(step):
            yield

    @cached_property
    def _sites(self) -> Mapping[str, AdapterSite]:
        return adapter_sites(self._model)

    @cached_property
    def _pool(self) -> AdapterPool:
        pages = AdapterPages.of(self._model.shape, self._config, self._device)
        most = GPU_ROWS if self._device.backend == "triton" else None
        return AdapterPool(self._cache, pages, self._sites, self._device.name, most)

    @cached_property
    def _hooks(self) -> AdapterHooks:
        return AdapterHooks(self._pool, self._sites, self._device.backend)

    def _size(self, name: str) -> AdapterSize:
        if name not in self._sizes:
            if self._model.has_layers_of_torch:
                raise UserError(
                    f"adapter {name.partition('#')[0]}: engine.determinism: strict adds adapters in layers of our own "
                    "alone, which this model has not; take default"
                )
            try:
                files = named_adapter(name)
                check_sites(files, self._sites)
                self._sizes[name] = size_in_cache(files, self._model.shape, self._config, self._device)
            except AdapterError as problem:
                raise UserError(f"adapter {name.partition('#')[0]} {problem}") from None
        return self._sizes[name]
