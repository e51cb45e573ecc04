"""Where of a machine each of a run's engines computes."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.config import EngineConfig
from engine.errors import UserError
from engine.machine.device import cuda_devices, resolve_device
from engine.machine.named_gpus import named_gpus, show_gpu

# Where Linux says which core, and which chip, a number stands for.
TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Place:
    """Part of a machine: `threads` on `cores`, or what its driver calls `gpu`: one, or one a rank with commas between.

    What is not said is all of it.
    """

    cores: tuple[int, ...] = ()
    threads: int = 0
    gpu: str | None = None

    def take(self) -> None:
        """This process computes there, in threads that this one starts from now on; nothing has asked for a device yet.

        Pinned to its cores, an engine takes the turns of those alone (`engine.machine.device_turn`).
        """
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        if self.threads:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)
        if self.gpu is not None:
            show_gpu(self.gpu)

    def __str__(self) -> str:
        if self.gpu is not None:
            return f"GPU {self.gpu}"
        return f"cores {', '.join(map(str, self.cores))}" if self.cores else "this machine"


def places(config: EngineConfig, workers: int) -> tuple[Place, ...]:
    """A place for each engine; `workers` 0: one on each GPU, or on as many as it has ranks, or where `config` names one
    there, or one on all cores.

    Raises UserError for more than there are GPUs or cores.
    """
    device, ranks = resolve_device(config), config.tensor_parallel
    if device.name == "cpu":
        return _on_cores(workers, device.shared_by(max(1, workers), ranks).cores * ranks)
    here = 1 if ":" in config.device else cuda_devices()
    most = here // ranks
    if workers > most:
        each = f", of which each takes {ranks} (engine.tensor_parallel)" if ranks > 1 else ""
        raise UserError(f"engine.workers: {workers} are more than the {here} GPUs that engine.device names{each}")
    names = visible_gpus(here)
    groups = [names[first : first + ranks] for first in range(0, ranks * (workers or most), ranks)]
    return tuple(Place(gpu=",".join(group)) for group in groups) if here > ranks else (Place(),)


def rank_places(ranks: int, threads: int) -> tuple[Place, ...]:
    """Where the ranks of an engine on a processor compute, each in `threads`: in parts of this process's cores."""
    return _on_cores(ranks, threads)


def visible_gpus(count: int) -> list[str]:
    """How the environment names the first `count` GPUs that this process sees."""
    return (named_gpus() or [str(index) for index in range(count)])[:count]


def _on_cores(workers: int, threads: int) -> tuple[Place, ...]:
    """Cores side by side, which share more of a processor than others do, and each with all of its hardware threads."""
    if workers < 2:
        return (Place(),)
    cores = sorted(os.sched_getaffinity(0), key=_position)
    each = max(1, len(cores) // workers)
    parts = [tuple(cores[first : first + each]) for first in range(0, workers * each, each)]
    return tuple(Place(part, min(threads, len(part)) if part else threads) for part in parts)


def _position(core: int) -> tuple[int, int, int]:
    """Its chip, its first hardware thread and itself: many processors number a core's second thread far behind."""
    folder = TOPOLOGY / f"cpu{core}" / "topology"
    with suppress(OSError, ValueError):
        chip = int((folder / "physical_package_id").read_text())
        first = (folder / "thread_siblings_list").read_text().replace("-", ",").partition(",")[0]
        return chip, int(first), core
    return 0, core, core
