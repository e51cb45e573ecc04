"""What was measured on this machine, kept in the cache for the next time."""

import json
import platform
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.machine.device import Device
from engine.model.checkpoint import ModelFiles, cache_dir, publish_file
from kernels.processor import PROCESSOR

_TORCH = version("torch")


def model_identity(model: ModelFiles, config: EngineConfig, device: Device) -> tuple[str, ...]:
    """All that decides how fast a model is here, but the machine."""
    ranks = (f"{config.tensor_parallel} ranks",) if config.tensor_parallel > 1 else ()
    return model.fingerprint, device.dtype, config.quantization, device.label, *ranks


def read_note(kind: str, *identity: str) -> Any:
    """What `write_note` kept; None where there is nothing that can be read."""
    with suppress(OSError, ValueError):
        return json.loads(_note(kind, identity).read_text())


def write_note(kind: str, content: Any, *identity: str) -> None:
    """A cache that cannot be written to costs the next measurement alone."""
    with suppress(OSError):
        publish_file(_note(kind, identity), json.dumps(content))


def _note(kind: str, identity: tuple[str, ...]) -> Path:
    decisive = (*identity, _TORCH, _processor(), PROCESSOR.name, PROCESSOR.features)
    return cache_dir() / kind / f"{sha256(repr(decisive).encode()).hexdigest()[:32]}.json"


@cache
def _processor() -> str:
    """This machine's own; loops may be compiled for another, and a home folder may be shared by machines."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
