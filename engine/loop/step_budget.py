"""How many tokens a step takes where the job does not say: measured once on this machine, then read from the cache.

A step's matmuls read all weights, so few rows waste memory's bandwidth; past some size more rows gain nothing, but hold
more activations. The default is left only for a size that is faster by `GAIN`: what a step costs beside its forward is
not measured, and rates that differ by less are the machine's noise.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from engine.config import EngineConfig
from engine.machine.device import Device
from engine.machine.machine_note import model_identity, read_note, write_note
from engine.model.checkpoint import ModelFiles
from engine.stages import enter

if TYPE_CHECKING:
    from engine.forward.model_runner import ModelRunner

# By backend.
SIZES = {"torch": (128, 256, 512, 1024, 2048), "triton": (1024, 2048, 4096, 8192, 16384)}
GAIN = 0.05
ROUNDS = 2
# No size is begun after this time.
LIMIT_SECONDS = 1.0
# Layers are alike, so a few of them stand for all; too few would stay in a core's cache and make few rows look good.
LAYERS = 4
# Rows attend to those of their own piece alone, so that attention costs each row the same whatever the step's size.
PIECE = 128


def known_step_tokens(model: ModelFiles, config: EngineConfig, device: Device) -> int | None:
    """What the job says, else what was measured here before; None where neither is there."""
    if config.max_num_batched_tokens:
        return config.max_num_batched_tokens
    measured = read_measured(model, config, device)
    return None if measured is None else choose(measured.tokens_per_second, device)


@dataclass(frozen=True, slots=True)
class Measured:
    """Tokens a second by step size, through `num_layers` layers, and what a row through all of them takes.

    0 is what an older note does not say.
    """

    tokens_per_second: dict[int, float]
    num_layers: int = 0
    one_row_seconds: float = 0.0


def read_measured(model: ModelFiles, config: EngineConfig, device: Device) -> Measured | None:
    """What a load on this machine kept; None where there is nothing that makes sense."""
    note = read_note("step-tokens", *model_identity(model, config, device))
    try:
        rates = {int(size): float(rate) for size, rate in note["tokens_per_second"].items()}
        measured = Measured(rates, int(note.get("num_layers", 0)), float(note.get("one_row_seconds", 0.0)))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    makes_sense = min(rates.values(), default=0.0) > 0 and measured.num_layers >= 0 and measured.one_row_seconds >= 0
    return measured if makes_sense and isfinite(sum(rates.values()) + measured.one_row_seconds) else None


def planning_config(model: ModelFiles, config: EngineConfig, device: Device) -> EngineConfig:
    """For a plan without an engine: the default where nothing is known."""
    tokens = known_step_tokens(model, config, device) or device.step_tokens
    return replace(config, max_num_batched_tokens=tokens)


def engine_config(model: ModelFiles, config: EngineConfig, runner: "ModelRunner") -> EngineConfig:
    """`config` with a number: known, or else measured on the loaded model, and kept if the cache takes it."""
    tokens = known_step_tokens(model, config, runner.device)
    if tokens is None:
        enter("measuring a step's size, once")
        measured = measure(runner)
        rates = measured.tokens_per_second
        tokens = choose(rates, runner.device)
        # A machine that is busy, or a model that is large, leaves sizes untried: the next start may do better.
        if len(rates) == len(SIZES[runner.device.backend]):
            write_note("step-tokens", asdict(measured), *model_identity(model, config, runner.device))
    return replace(config, max_num_batched_tokens=tokens)


def measure(runner: "ModelRunner") -> Measured:
    """At each step size that the time allowed, a forward of a few layers; then one row alone. No KV is left behind."""
    from engine.forward.warm_up import independent_rows  # brings torch, which plans do without

    piece = min(PIECE, runner.model.shape.max_model_len)

    def seconds(size: int) -> float:
        step = independent_rows([min(piece, size - start) for start in range(0, size, piece)])
        started = time.perf_counter()
        runner.forward(step).hidden[-1, -1].item()  # a GPU is done only when a value is there
        return time.perf_counter() - started

    sizes = SIZES[runner.device.backend]
    with _few_layers(runner.model.body, runner.model.shape.num_layers) as num_layers:
        seconds(sizes[0])  # pays for what is built once
        rates = best_rates(seconds, sizes)
    # All layers now: the weights of a few may stay in a cache.
    return Measured(rates, num_layers, min(seconds(1) for _ in range(1 + ROUNDS)))


def best_rates(seconds: Callable[[int], float], sizes: Sequence[int]) -> dict[int, float]:
    """The best of `ROUNDS` at each size; rounds go over all sizes in turn, so that a slow moment hits no size alone."""
    best: dict[int, float] = {}
    spent = 0.0
    for _ in range(ROUNDS):
        for size in sizes:
            if spent > LIMIT_SECONDS:
                return best
            took = seconds(size)
            spent += took
            best[size] = max(best.get(size, 0.0), size / took)
    return best


def choose(rates: dict[int, float], device: Device) -> int:
    """The default, but for the smallest size that is faster by `GAIN` and within as much of the best.

    The default too where not all sizes were tried.
    """
    default = device.step_tokens
    if len(rates) < len(SIZES[device.backend]) or max(rates.values()) < (1 + GAIN) * rates[default]:
        return default
    return min(size for size, rate in rates.items() if (1 + GAIN) * rate >= max(rates.values()))


@contextmanager
def _few_layers(body: Any, num_layers: int) -> Iterator[int]:
    """Has the body run its first `LAYERS` layers alone, or all where they are not found; gives how many those are."""
    layers = getattr(body, "layers", ())
    if len(layers) != num_layers:
        yield num_layers
        return
    body.layers = layers[:LAYERS]
    try:
        yield len(body.layers)
    finally:
        body.layers = layers
