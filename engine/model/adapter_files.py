"""A LoRA adapter on the disk, as PEFT saves it: a folder with adapter_config.json and adapter_model.safetensors."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.model.adapter_config import AdapterConfig, AdapterError, parse_adapter_config
from engine.model.checkpoint import file_digest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What PEFT puts before the paths of a model's layers.
PREFIX = "base_model.model."
_NAME = re.compile(r"(?P<path>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True, slots=True)
class AdapterTarget:
    """A linear layer to whose output of x `scale * B(A x)` is added: A is (rank, inputs), B (outputs, rank)."""

    path: str
    inputs: int
    outputs: int
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """`fingerprint` is a digest of all that decides what the adapter computes."""

    folder: Path
    fingerprint: str
    targets: tuple[AdapterTarget, ...]

    @property
    def name(self) -> str:
        """What requests call it: the same wherever in a run it is asked for, and never another content's."""
        return f"{self.folder}#{self.fingerprint}"

    @property
    def params(self) -> int:
        return sum(target.rank * (target.inputs + target.outputs) for target in self.targets)


def read_adapter(folder: str | Path) -> AdapterFiles:
    """Reads all of it but its weights. Raises AdapterError for what is not there, or is not served."""
    place = Path(folder).expanduser().absolute()
    if not place.is_dir():
        raise AdapterError("is no folder; give one that PEFT saved")
    if not (place / WEIGHTS).is_file():
        pickled = next(place.glob("adapter_model.bin"), None)
        found = "only adapter_model.bin, which is a pickle and is never loaded" if pickled else f"no {WEIGHTS}"
        raise AdapterError(f"holds {found}; save it as safetensors")
    try:
        config = parse_adapter_config(json.loads((place / CONFIG).read_text(encoding="utf-8")))
        shapes = _shapes_in(place / WEIGHTS)
        digest = file_digest(place / WEIGHTS)
    except AdapterError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise AdapterError(f"cannot be read ({problem})") from None
    targets = tuple(_targets(config, shapes))
    decisive = "\n".join([digest, *(f"{target.path} {target.scale!r}" for target in targets)])
    return AdapterFiles(place, hashlib.sha256(decisive.encode()).hexdigest()[:32], targets)


def named_adapter(name: str) -> AdapterFiles:
    """The adapter of an `AdapterFiles.name`, or of a folder alone. Raises AdapterError where it changed meanwhile."""
    folder, _, fingerprint = name.rpartition("#")
    found = read_adapter(folder or name)
    if folder and found.fingerprint != fingerprint:
        raise AdapterError("is not what it was when the rows were read")
    return found


def fingerprint_in(name: str) -> str:
    """The part of an `AdapterFiles.name` that stays when its folder moves."""
    return name.rpartition("#")[2]


def weight_names(target: AdapterTarget) -> tuple[str, str]:
    """A's and B's, in the file."""
    return f"{PREFIX}{target.path}.lora_A.weight", f"{PREFIX}{target.path}.lora_B.weight"


def _targets(config: AdapterConfig, shapes: dict[str, list[int]]) -> list[AdapterTarget]:
    """By path. Raises AdapterError for a tensor that is no layer's A or B."""
    sides: dict[str, dict[str, list[int]]] = {}
    for name, shape in shapes.items():
        found = _NAME.fullmatch(name.removeprefix(PREFIX))
        if found is None or not name.startswith(PREFIX) or len(shape) != 2:
            raise AdapterError(f"holds {name!r:.100}, which is not a linear layer's LoRA weight")
        sides.setdefault(found["path"], {})[found["side"]] = shape
    if not sides:
        raise AdapterError("adapts no layer")
    return [_target(config, path, sides[path]) for path in sorted(sides)]


def _target(config: AdapterConfig, path: str, sides: dict[str, list[int]]) -> AdapterTarget:
    if len(sides) < 2:
        raise AdapterError(f"has one of {path}'s two weights alone")
    if not config.adapts(path):
        raise AdapterError(f"has weights of {path}, which its target_modules leave out")
    (rank, inputs), (outputs, other) = sides["A"], sides["B"]
    if not rank == other == config.rank_of(path) > 0:
        said = config.rank_of(path)
        raise AdapterError(f"has ranks of {rank} and {other} in {path}, of which its config says {said}")
    return AdapterTarget(path, inputs, outputs, rank, config.scale_of(path))


def _shapes_in(file: Path) -> dict[str, list[int]]:
    """By name, of a file's tensors."""
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        header: dict[str, Any] = json.loads(source.read(min(length, file.stat().st_size)))
    return {name: list(map(int, one["shape"])) for name, one in header.items() if name != "__metadata__"}
