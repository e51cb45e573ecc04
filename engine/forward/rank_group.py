"""The ranks that compute a model together, each with its part of every layer; what they sum and what they share."""

import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from engine.config import EngineConfig
from engine.machine.device import Device

# For a sum that another rank does not come to; a rank that ends is noticed at once.
MIN_TIMEOUT = 600.0


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


def join_group(rank: int, meeting: Path, config: EngineConfig, device: Device) -> RankGroup:
    """Returns once all ranks have come: `meeting` is a file that is not there yet, through which they find each other.

    On one machine alone: what goes over a network device goes over the loopback.
    """
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    leave_group()  # of an engine of this process that is gone
    os.environ["LOCAL_RANK"] = str(rank)  # by which transformers finds the rank's device
    size = config.tensor_parallel
    dist.init_process_group(
        "gloo" if device.name == "cpu" else "nccl",
        store=dist.FileStore(str(meeting), size),  # type: ignore[attr-defined]
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=max(config.step_timeout, MIN_TIMEOUT)),
    )
    return RankGroup(rank, size)


def leave_group() -> None:
    """Of a group whose other ranks are gone, or of none."""
    abort_group()
    if dist.is_initialized():
        dist.destroy_process_group()
        os.environ.pop("LOCAL_RANK", None)  # accelerate would take this process for one of several


def abort_group() -> None:
    """Ends sums that a GPU waits in for a rank that is gone: what waits for them raises. On a CPU they end by
    themselves, for who is gone has closed its socket.
    """
    if dist.is_initialized() and dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()
