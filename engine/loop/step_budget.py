"""How many tokens a step takes where the job does not say: measured once on this machine, then read from the cache.

A step's matmuls read all weights, so few rows waste memory's bandwidth; past some size more rows gain nothing, but hold
more activations. The default is left only for a size that is faster by `GAIN` in every round: what a step costs beside
its forward is not measured, and what one round alone says is the machine's noise.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from engine.config import EngineConfig
from engine.errors import UserError
from engine.machine import memory
from engine.machine.device import Device
from engine.machine.machine_note import model_identity, read_note, write_note
from engine.model.checkpoint import ModelFiles
from engine.model.model_shape import ModelShape
from engine.stages import enter

if TYPE_CHECKING:
    from engine.forward.model_runner import ModelRunner

# By backend.
SIZES = {"torch": (128, 256, 512, 1024, 2048), "triton": (1024, 2048, 4096, 8192, 16384)}
GAIN = 0.1
ROUNDS = 3
# No size is begun after this time.
LIMIT_SECONDS = 3.0
# Layers are alike, so a few of them stand for all; too few would stay in a core's cache and make few rows look good.
LAYERS = 4
# Rows attend to those of their own piece alone, so that attention costs each row the same whatever the step's size.
PIECE = 128


# Tokens a second by step size.
Rates = dict[int, float]


def settled(model: ModelFiles, shape: ModelShape, config: EngineConfig, device: Device) -> EngineConfig:
    """As `engine.machine.memory.settled`; where KV takes what a GPU's step leaves, with the step that was measured.

    A larger step is faster by `GAIN` at the least, and may take as much of the KV. Where it takes more, or nothing has
    been measured yet, memory is settled for the default, beyond which no step is chosen then.
    """
    plain = memory.settled(model, shape, config, device)
    if plain is config or config.max_num_batched_tokens or config.tensor_parallel > 1 or device.backend == "torch":
        return plain
    if (measured := read_measured(model, config, device)) is not None:
        as_measured = replace(config, max_num_batched_tokens=choose(measured.rounds, device))
        with suppress(UserError):
            other = memory.settled(model, shape, as_measured, device)
            if other.kv_cache_memory >= (1 - GAIN) * plain.kv_cache_memory:
                return other
    return plain


def known_step_tokens(model: ModelFiles, config: EngineConfig, device: Device) -> int | None:
    """What the job says, else what was measured here before; None where neither is there.

    Of several ranks nothing is measured, for all of them would have to; theirs is the device's default.
    """
    if config.max_num_batched_tokens:
        return config.max_num_batched_tokens
    if config.tensor_parallel > 1:
        return device.step_tokens
    measured = read_measured(model, config, device)
    return None if measured is None else choose(measured.rounds, device, _most(device))


@dataclass(frozen=True, slots=True)
class Measured:
    """Tokens a second by step size in each round, through `num_layers` layers; seconds of a row through all of them.

    0 is what an older note does not say; it has one round.
    """

    rounds: tuple[Rates, ...]
    num_layers: int = 0
    one_row_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> Rates:
        """The best of all rounds by step size."""
        sizes = dict.fromkeys(size for rates in self.rounds for size in rates)
        return {size: max(rates.get(size, 0.0) for rates in self.rounds) for size in sizes}


def read_measured(model: ModelFiles, config: EngineConfig, device: Device) -> Measured | None:
    """What a load on this machine kept; None where there is nothing that makes sense."""
    note = read_note("step-tokens", *model_identity(model, config, device))
    try:
        noted = note["rounds"] if "rounds" in note else [note["tokens_per_second"]]
        rounds = tuple({int(size): float(rate) for size, rate in rates.items()} for rates in noted)
        measured = Measured(rounds, int(note.get("num_layers", 0)), float(note.get("one_row_seconds", 0.0)))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    rates = [rate for one in rounds for rate in one.values()]
    makes_sense = (
        max(rates, default=0.0) > 0 and min(rates) >= 0 and measured.num_layers >= 0 and measured.one_row_seconds >= 0
    )
    return measured if makes_sense and isfinite(sum(rates) + measured.one_row_seconds) else None


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
        tokens = choose(measured.rounds, runner.device, _most(runner.device))
        # A machine that is busy, or a model that is large, leaves sizes untried: the next start may do better.
        if _is_whole(measured.rounds, runner.device):
            write_note("step-tokens", asdict(measured), *model_identity(model, config, runner.device))
    return replace(config, max_num_batched_tokens=tokens)


def measure(runner: "ModelRunner") -> Measured:
    """At each step size that the time allowed, a forward of a few layers; then one row alone. No KV is left behind.

    A size that there is no memory for takes for ever.
    """
    from engine.forward.warm_up import independent_rows  # brings torch, which plans do without
    from engine.machine.out_of_memory import is_out_of_memory  # so does this

    piece = min(PIECE, runner.model.shape.max_model_len)

    def seconds(size: int) -> float:
        step = independent_rows([min(piece, size - start) for start in range(0, size, piece)])
        started = time.perf_counter()
        try:
            runner.forward(step).hidden[-1, -1].item()  # a GPU is done only when a value is there
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            return inf
        return time.perf_counter() - started

    sizes = SIZES[runner.device.backend]
    with _few_layers(runner.model.body, runner.model.shape.num_layers) as num_layers:
        seconds(sizes[0])  # pays for what is built once
        rounds = rates_by_round(seconds, sizes)
    # All layers now: the weights of a few may stay in a cache.
    return Measured(rounds, num_layers, min(seconds(1) for _ in range(1 + ROUNDS)))


def rates_by_round(seconds: Callable[[int], float], sizes: Sequence[int]) -> tuple[Rates, ...]:
    """Each round goes over all sizes in turn, so that a slow moment hits no size alone; the last may be cut short."""
    rounds: list[Rates] = []
    spent = 0.0
    for _ in range(ROUNDS):
        rates: Rates = {}
        for size in sizes:
            if spent > LIMIT_SECONDS:
                break
            took = seconds(size)
            spent += took if isfinite(took) else 0.0
            rates[size] = size / took
        if rates:
            rounds.append(rates)
    return tuple(rounds)


def choose(rounds: Sequence[Rates], device: Device, most: float = inf) -> int:
    """The default, but for a size that is faster by `GAIN` in every whole round: of those the largest that comes within
    as much of the best, out of sizes up to `most`. The default too where not all sizes were tried.
    """
    default = device.step_tokens
    whole = [rates for rates in rounds if len(rates) == len(SIZES[device.backend])]
    if not whole:
        return default
    sizes = [size for size in whole[0] if size <= most]
    faster = [size for size in sizes if all(rates[size] >= (1 + GAIN) * rates[default] for rates in whole)]
    best = {size: max(rates[size] for rates in whole) for size in faster}
    return max((size for size in faster if (1 + GAIN) * best[size] >= max(best.values())), default=default)


def _most(device: Device) -> float:
    """What memory is settled for where a step's size is not: on a GPU for no more than the default."""
    return device.step_tokens if device.backend == "triton" else inf


def _is_whole(rounds: Sequence[Rates], device: Device) -> bool:
    """Whether all sizes were tried."""
    return any(len(rates) == len(SIZES[device.backend]) for rates in rounds)


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
