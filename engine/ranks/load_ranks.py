"""Loads a model on all of an engine's ranks at once; of one rank there is nobody to ask."""

import os

from engine.config import EngineConfig
from engine.forward.load_runner import load_runner
from engine.forward.model_runner import ModelRunner
from engine.forward.rank_group import join_group, refuse_foreign_group
from engine.machine.device import Device
from engine.machine.place import Place, rank_places
from engine.model.checkpoint import ModelFiles
from engine.ranks.other_ranks import OtherRanks
from engine.stages import enter


def load_ranks(model: ModelFiles, config: EngineConfig, device: Device) -> ModelRunner:
    """The first rank's, on `device`, whose steps the others run too; in the thread that is to run the steps.

    Raises what `load_runner` does, RankLostError where another rank ended, and UserError where this process has a group
    of ranks that is not the engine's.
    """
    ranks = config.tensor_parallel
    if ranks < 2:
        return load_runner(model, config, device)
    refuse_foreign_group()
    places = rank_places(ranks, device.cores) if device.name == "cpu" else (Place(),) * ranks
    enter("starting the other ranks")
    others = OtherRanks(model, config, places)
    try:
        others.wait_until_begun()
        if places[0].cores:
            os.sched_setaffinity(0, places[0].cores)  # this thread's, and those that it starts
        group = join_group(0, others.meeting, config, device, others.check)
        runner = load_runner(model, config, device, group)
    except BaseException as problem:
        try:
            if isinstance(problem, RuntimeError):  # a sum that failed is one
                others.blame(problem)
        finally:
            others.close()
        raise
    runner.others = others
    return runner
