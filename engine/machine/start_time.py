"""How long it takes until the first token: as last measured on this machine, else an expectation."""

from engine.config import EngineConfig
from engine.machine.device import Device
from engine.machine.machine_note import model_identity, read_note, write_note
from engine.model.checkpoint import ModelFiles

# Python, Prefect's server and the libraries; measured at 7 s on two cores of an AMD EPYC.
STARTING_SECONDS = 7.0
# Weights read, checked and packed, once they are converted and the loops compiled; a second is spent on any model.
WEIGHT_BYTES_PER_SECOND = 0.3e9
# To a GPU, kernels compiled before and graphs captured: 8 s for the 16 GB of an 8B model on an H100 (docs/kernels.md).
GPU_WEIGHT_BYTES_PER_SECOND = 2e9


def note_starting(seconds: float) -> None:
    """From the command to where a run reads its rows."""
    write_note("starting", round(seconds, 2))


def note_loading(seconds: float, model: ModelFiles, config: EngineConfig, device: Device) -> None:
    """From weights that are there as safetensors to a model that computes."""
    write_note("loading", round(seconds, 2), *model_identity(model, config, device))


def expected_starting() -> float:
    return _known(read_note("starting")) or STARTING_SECONDS


def expected_loading(weight_bytes: int, model: ModelFiles, config: EngineConfig, device: Device) -> float:
    known = _known(read_note("loading", *model_identity(model, config, device)))
    rate = WEIGHT_BYTES_PER_SECOND if device.name == "cpu" else GPU_WEIGHT_BYTES_PER_SECOND
    return known or 1 + weight_bytes / rate


def _known(note: object) -> float | None:
    return float(note) if isinstance(note, int | float) and 0 < note < 86_400 else None
