"""The process of a rank but the first: loads its part of the model, and runs each step that it is told to."""

import importlib
import os
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.machine.device import Device, resolve_device
from engine.process.begin import begin
from engine.process.channel import Channel
from engine.process.importing import importing
from engine.ranks.messages import LoadPart, read_load, read_step

if TYPE_CHECKING:
    from engine.forward.model_runner import ModelRunner

# A frame that says that all is imported and the device is there; what comes behind it are the words of an error.
BEGUN = b""


def main() -> None:
    channel = begin()
    try:
        _serve(channel)
    except BaseException as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        channel.send(f"{type(error).__name__}: {error}".encode(errors="backslashreplace"))
        os._exit(1)
    os._exit(0)  # without taking apart what other threads may be using


def _serve(channel: Channel) -> None:
    """Until the channel's end."""
    frame = channel.receive()
    if frame is None:
        return
    load = read_load(frame)
    load.place.take()  # in this thread, from which those that compute have it
    with importing():
        importlib.import_module("engine.forward.load_runner")  # seconds
    device = resolve_device(load.config)
    channel.send(BEGUN)
    runner = _load(load, device)
    while (frame := channel.receive()) is not None:
        runner.forward(read_step(frame))


def _load(load: LoadPart, device: Device) -> "ModelRunner":
    from engine.forward.load_runner import load_runner
    from engine.forward.rank_group import join_group

    if device.name != "cpu":
        device = replace(device, name=f"cuda:{load.rank}")
    group = join_group(load.rank, load.meeting, load.config, device)
    return load_runner(load.model, load.config, device, group)
