"""The adapters that a job names, found and held to its model before anything runs."""

import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.adapter_size import AdapterSize
from engine.config import EngineConfig
from engine.errors import UserError
from engine.machine.adapter_pages import size_in_cache
from engine.machine.device import Device
from engine.model.adapter_config import AdapterError
from engine.model.adapter_files import AdapterFiles, named_adapter, read_adapter
from engine.model.base_linears import hold_to_base
from engine.model.checkpoint import ModelFiles
from engine.model.model_shape import ModelShape
from tasks.job.job import ScoringJob


def find_adapter(
    place: str, folder: str | None, model: ModelFiles, shape: ModelShape, config: EngineConfig, device: Device
) -> AdapterFiles:
    """The adapter in a PEFT folder, which is looked for from the working directory, or else from `folder`.

    Raises AdapterError for one that is not there, was made for another base, or does not fit the KV budget.
    """
    wanted = os.path.expanduser(place)
    tried = [wanted] if folder is None else [wanted, os.path.join(folder, wanted)]
    found = read_adapter(next((path for path in tried if os.path.isdir(path)), wanted))
    hold_to_base(found, model)
    size_in_cache(found, shape, config, device)
    return found


def job_adapters(
    job: ScoringJob, model: ModelFiles, shape: ModelShape, config: EngineConfig, device: Device
) -> dict[str, AdapterFiles]:
    """By name, and that of `model.adapter` by what it is called there. Raises UserError, which names the job's key."""
    places = {name: (f"model.adapters.{name}", place) for name, place in job.model.adapters.items()}
    one = job.model.adapter
    if one is not None and one not in places:
        places[one] = ("model.adapter", one)
    found = {}
    for name, (key, place) in places.items():
        try:
            found[name] = find_adapter(place, job.source.folder, model, shape, config, device)
        except AdapterError as problem:
            raise UserError(f"{key}: {place} {problem}") from None
    return found


def adapter_sizes(
    adapters: Iterable[str | None], shape: ModelShape, config: EngineConfig, device: Device
) -> dict[str, AdapterSize]:
    """Of requests' `adapters`, which were found and held to the model when the rows were read."""
    names = {name for name in adapters if name is not None}
    try:
        return {name: size_in_cache(named_adapter(name), shape, config, device) for name in names}
    except AdapterError as problem:
        raise UserError(f"an adapter of the plan {problem}") from None


def are_unchanged(requests: Path) -> bool:
    """Whether all adapters that a stored plan's requests run with are what they were."""
    names = pc.unique(pq.read_table(requests, columns=["adapter"]).column("adapter")).to_pylist()
    try:
        for name in names:
            if name is not None:
                named_adapter(name)
    except AdapterError:
        return False
    return True
