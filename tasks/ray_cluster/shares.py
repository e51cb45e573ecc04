"""Which part of a Ray cluster's node each engine takes."""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.config import EngineConfig


@dataclass(frozen=True, slots=True)
class Share:
    """What Ray keeps for an engine, and how many threads that has."""

    cpus: int
    gpus: int
    threads: int


def shares(resources: Mapping[str, float], config: EngineConfig, *, cpus_each: int = 0) -> list[Share]:
    """An engine for each GPU, or for as many as it has ranks; without GPUs one for all of the node's CPUs, or for each
    `cpus_each` of them.

    `config.device` is what the run computes on: a node without it has none, and neither has one that Ray is to leave
    alone (`ray start --num-cpus 0`).
    """
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if config.device != "cpu":
        engines = gpus // config.tensor_parallel
        return [Share(0, config.tensor_parallel, max(1, cpus // max(1, engines)))] * engines
    each = cpus_each or cpus
    return [Share(each, 0, each)] * (cpus // each) if each else []
