"""What the first rank tells the others: plain data, in msgpack."""

from pathlib import Path

import msgspec

from engine.config import EngineConfig
from engine.machine.place import Place
from engine.model.checkpoint import ModelFiles
from engine.process.plain_data import decode_hook, encode_hook
from engine.scheduling.scheduler_output import SchedulerOutput


class LoadPart(msgspec.Struct, frozen=True, array_like=True):
    """The first of all: which model, which part of it, where to compute, and the file that the ranks meet through."""

    model: ModelFiles
    config: EngineConfig
    rank: int
    meeting: Path
    place: Place


def encode(message: LoadPart | SchedulerOutput) -> bytes:
    """A frame. All behind the first are steps."""
    return _encoder.encode(message)


def read_load(frame: bytes) -> LoadPart:
    return _load.decode(frame)


def read_step(frame: bytes) -> SchedulerOutput:
    return _step.decode(frame)


_encoder = msgspec.msgpack.Encoder(enc_hook=encode_hook)
_load: msgspec.msgpack.Decoder[LoadPart] = msgspec.msgpack.Decoder(LoadPart, dec_hook=decode_hook)
_step: msgspec.msgpack.Decoder[SchedulerOutput] = msgspec.msgpack.Decoder(SchedulerOutput, dec_hook=decode_hook)
