"""The tile that a step's attention takes: what `kernels.gpu.tune` found fastest on this device, else the table's.

What was found is kept in the user's cache, one small file a device, head size and kind of step.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch

from kernels.gpu.tuning.attention_config import (
    AttentionConfig,
    attention_candidates,
    attention_config,
    decode_config,
)
from kernels.gpu.tuning.device_limits import architecture

Milliseconds = Callable[[AttentionConfig], float]
# In place of a number of rows: steps that only decode, whatever they stack.
DECODE = 0


def choose_config(device: torch.device, dim: int, widest: int) -> AttentionConfig:
    """For heads of `dim` in a step whose widest segment stacks `widest` > 0 query rows, or that decodes (`DECODE`)."""
    if device.type == "cuda":
        kept = _kept(cache_folder(), device, dim, _bucket(widest))
        if kept is not None:
            return kept
    return attention_config(device, dim, widest) if widest else decode_config(device, dim)


def tune(device: torch.device, dim: int, widest: int, time: Milliseconds) -> AttentionConfig:
    """The fastest candidate by `time`, which steps of this kind take from now on in every process.

    A folder that cannot be written to costs the choice, no more.
    """
    candidates = attention_candidates(architecture(device), dim)
    best = min(candidates, key=time)
    _keep(_file(cache_folder(), device, dim, _bucket(widest)), best)
    forget()
    return best


def forget() -> None:
    """Reads files again that this process has read."""
    _kept.cache_clear()


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TRUNKLINE_CACHE") or Path(base) / "trunkline") / "tuning"


def _bucket(widest: int) -> int:
    """Steps are alike whose `widest` round up to the same power of two."""
    return 1 << (widest - 1).bit_length() if widest else DECODE


@cache
def _kept(folder: Path, device: torch.device, dim: int, bucket: int) -> AttentionConfig | None:
    """None where nothing was tuned, or what is there is not whole."""
    try:
        return AttentionConfig(**json.loads(_file(folder, device, dim, bucket).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _keep(path: Path, config: AttentionConfig) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(f".{os.getpid()}")
        staged.write_text(json.dumps(asdict(config)))
        staged.replace(path)
    except OSError:
        pass


def _file(folder: Path, device: torch.device, dim: int, bucket: int) -> Path:
    """Its name holds all that the choice depends on, the candidates too: an old choice is not a new table's."""
    import triton

    name = torch.cuda.get_device_name(device).replace(" ", "-").replace("/", "-")
    candidates = attention_candidates(architecture(device), dim)
    table = hashlib.sha256(repr(candidates).encode()).hexdigest()[:12]
    return folder / f"{name}-triton{triton.__version__}-dim{dim}-rows{bucket}-{table}.json"
