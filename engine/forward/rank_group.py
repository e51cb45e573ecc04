"""The ranks that compute a model together, each with its part of every layer; what they sum and what they share."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from engine.config import EngineConfig
from engine.errors import UserError
from engine.machine.device import Device

# For a sum that another rank does not come to; a rank that ends is noticed at once.
MIN_TIMEOUT = 600.0
# In which ranks that have begun, with all imported, find each other.
MEETING_SECONDS = 60.0
LOOK_SECONDS = 0.01

_RANK = "LOCAL_RANK"

# What this process made itself, which alone it leaves: whoever calls the engine may have a group for itself.
_own: "dist.ProcessGroup | None" = None
_rank_before: str | None = None


@dataclass(frozen=True, slots=True)
class RankGroup:
    """This process's place among `size` ranks; the first, 0, is the engine's own, which schedules and samples."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def add_up(self, parts: Tensor) -> None:
        """In place, what all ranks have: the same bits on each."""
        if parts.numel():
            dist.all_reduce(parts)

    def as_first_has(self, tensor: Tensor) -> Tensor:
        """What the first rank has; of the others, a tensor of that shape and dtype, which is written."""
        dist.broadcast(tensor, src=0)
        return tensor


def join_group(
    rank: int, meeting: Path, config: EngineConfig, device: Device, check: Callable[[], None] = lambda: None
) -> RankGroup:
    """Returns once all ranks have come: `meeting` is a file that is not there yet, through which they find each other.

    On one machine alone: what goes over a network device goes over the loopback. While others are awaited, `check` may
    raise. Raises RuntimeError where the first rank waits for longer than `MEETING_SECONDS`.
    """
    global _own, _rank_before
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    size, timeout = config.tensor_parallel, max(config.step_timeout, MIN_TIMEOUT)
    store = dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]
    # The first comes when all others have begun, which they wait for: it alone can know that one of them is late.
    _meet(store, rank, size, MEETING_SECONDS if rank == 0 else timeout, check)
    backend, patience = "gloo" if device.name == "cpu" else "nccl", timedelta(seconds=MEETING_SECONDS)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    _own = dist.group.WORLD
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout))
    _rank_before = os.environ.get(_RANK)
    os.environ[_RANK] = str(rank)  # by which transformers finds the rank's device
    return RankGroup(rank, size)


def _meet(
    store: dist.FileStore,  # type: ignore[name-defined]
    rank: int,
    size: int,
    seconds: float,
    check: Callable[[], None],
) -> None:
    """Looks, rather than waits in the store, which hears of no rank that ends."""
    store.set(f"rank {rank}", "here")
    deadline = time.monotonic() + seconds
    while not store.check([f"rank {each}" for each in range(size)]):
        check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"engine.tensor_parallel: not all of {size} ranks came together in {seconds:g} s")
        time.sleep(LOOK_SECONDS)


def refuse_foreign_group() -> None:
    """Raises UserError where whoever calls the engine has a group in this process, which can have one."""
    if dist.is_initialized() and not _is_own():
        raise UserError(
            "engine.tensor_parallel: this process is already a rank of a torch.distributed group, as torchrun and "
            "accelerate start them; start it as one plain process, or set engine.tensor_parallel to 1"
        )


def leave_group() -> None:
    """Of a group that this process made and whose other ranks are gone, or of none."""
    global _own
    if _own is None:
        return
    abort_group()
    if _is_own():  # no more, where it was aborted
        dist.destroy_process_group()
    _own = None
    # accelerate would take this process for one of several
    if _rank_before is None:
        os.environ.pop(_RANK, None)
    else:
        os.environ[_RANK] = _rank_before


def abort_group() -> None:
    """Ends sums that a GPU waits in for a rank that is gone: what waits for them raises. On a CPU they end by
    themselves, for who is gone has closed its socket.
    """
    if _is_own() and dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()


def _is_own() -> bool:
    return dist.is_initialized() and dist.group.WORLD is _own
