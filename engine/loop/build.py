"""Puts an engine together: device, weights, KV cache, tokenizer."""

import ctypes
import sys
import time
from functools import cache

from engine.config import EngineConfig
from engine.forward.model_runner import ModelRunner
from engine.loop.engine import Engine
from engine.loop.plan_cost import keep_step_times, plan_cost
from engine.loop.step_budget import engine_config, settled
from engine.loop.step_limit import StepLimit
from engine.loop.trace import OnStep
from engine.machine.device import refuse_old, resolve_device
from engine.machine.device_turn import DeviceTurn
from engine.machine.memory import memory_need, ran_out, refuse_too_large
from engine.machine.out_of_memory import is_out_of_memory
from engine.machine.start_time import note_loading
from engine.model.checkpoint import ModelFiles, load_shape, weights_folder
from engine.model.tokenizer import load_tokenizer
from engine.planning.cost import CostModel
from engine.planning.step_times import StepTimes
from engine.ranks.load_ranks import load_ranks
from engine.scheduling.scheduler_output import SchedulerOutput

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def build_engine(
    model: ModelFiles, config: EngineConfig, *, detokenize: bool = True, on_step: OnStep | None = None
) -> Engine:
    """A loaded engine, whoever else uses the device.

    Raises UserError for a model or device that cannot be served, or for more memory than there is.
    """
    engine = start_engine(model, config, detokenize=detokenize, on_step=on_step)
    engine.wait_until_loaded()
    return engine


def start_engine(
    model: ModelFiles,
    config: EngineConfig,
    *,
    detokenize: bool = True,
    on_step: OnStep | None = None,
    turn: DeviceTurn | None = None,
) -> Engine:
    """An engine that waits for its device's turn and loads. Raises UserError for a device, a tokenizer or memory."""
    device = resolve_device(config).shared_by(1, config.tensor_parallel)
    shape = load_shape(model, config.tensor_parallel)
    config = settled(model, shape, config, device)
    need = memory_need(model, shape, config, device)
    refuse_too_large(need, config, device)

    limit = StepLimit(shape, config, device)

    def load() -> tuple[ModelRunner, EngineConfig]:
        try:
            return load_all()
        except (MemoryError, RuntimeError, OSError) as problem:
            if not is_out_of_memory(problem):
                raise
            raise ran_out(need, device) from problem

    def load_all() -> tuple[ModelRunner, EngineConfig]:
        refuse_old(device)
        weights_folder(model)  # a conversion is made once, so that it says nothing of the next start
        started = time.perf_counter()
        runner = load_ranks(model, config, device)
        try:
            limit.load(runner.model)
            note_loading(time.perf_counter() - started, model, config, device)
            return runner, engine_config(model, config, runner)
        except BaseException:
            runner.close()
            raise

    @cache
    def cost() -> CostModel:  # once the model is loaded, because loading may measure the rates
        return plan_cost(model, shape, config, device)

    if device.name == "cpu":
        _keep_freed_memory()  # before the engine's thread is given an arena
    tokenizer = load_tokenizer(model) if detokenize else None

    @cache
    def times() -> StepTimes:
        return StepTimes(cost())

    def took(step: SchedulerOutput, seconds: float) -> float:
        times().learn(step, seconds)
        keep_step_times(times(), model, config, device)
        return limit.seconds(step)

    return Engine(load, config, tokenizer, on_step, turn, took=took, free_rows=lambda: cost().free_rows())


def _keep_freed_memory() -> None:
    """Lets glibc reuse a step's large buffers, which it would give back and fault in again at every layer.

    One arena, because only the engine's thread allocates much; 32 MiB is the largest threshold that glibc takes.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 2**25), (M_TRIM_THRESHOLD, 2**29)):
            mallopt(parameter, value)
