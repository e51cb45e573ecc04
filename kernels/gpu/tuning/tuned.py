"""The tuning table tried out on the device at hand, once for each size of step; the choice is kept on disk."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from kernels.gpu.tuning.attention_config import AttentionConfig, attention_candidates, attention_config
from kernels.gpu.tuning.device_limits import architecture

Milliseconds = Callable[[AttentionConfig], float]


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TRUNKLINE_CACHE") or Path(base) / "trunkline") / "tuning"


def tuned_config(
    device: torch.device, dim: int, widest: int, time: Milliseconds, folder: Path | None = None
) -> AttentionConfig:
    """The fastest candidate by `time`, for heads of `dim` and a step whose widest segment stacks `widest` rows.

    Steps are alike whose `widest` round up to the same power of two. Where there is no GPU nothing is timed. A folder
    that cannot be written costs the timing again, no more. The file's name holds everything that the choice depends
    on, the table included, so that an old choice is never taken for a new table's.
    """
    if device.type != "cuda":
        return attention_config(device, dim, widest)
    candidates = attention_candidates(architecture(device), dim)
    return fastest(candidates, _key(device, dim, widest, candidates), time, folder or cache_folder())


def fastest(candidates: tuple[AttentionConfig, ...], key: str, time: Milliseconds, folder: Path) -> AttentionConfig:
    path = folder / f"{key}.json"
    try:
        return AttentionConfig(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        pass  # not there, or not whole
    best = min(candidates, key=time)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(f".{os.getpid()}")
        staged.write_text(json.dumps(asdict(best)))
        staged.replace(path)
    except OSError:
        pass
    return best


def _key(device: torch.device, dim: int, widest: int, candidates: tuple[AttentionConfig, ...]) -> str:
    import triton

    name = torch.cuda.get_device_name(device).replace(" ", "-").replace("/", "-")
    table = hashlib.sha256(repr(candidates).encode()).hexdigest()[:12]
    return f"{name}-triton{triton.__version__}-dim{dim}-rows{1 << (max(widest, 1) - 1).bit_length()}-{table}"
