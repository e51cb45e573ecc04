"""What goes between a run and its engine's process: plain data, in msgpack."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin

import msgspec
import numpy as np

from engine.config import EngineConfig
from engine.machine.place import Place
from engine.model.checkpoint import ModelFiles
from engine.plan import ShardWork
from engine.request import RequestOutput
from tasks.workers import Computed


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One of those below, which are told apart by their names."""


class Load(Message, frozen=True):
    """The first of all: which model, the file that gets a line a step, and where of the machine to compute."""

    model: ModelFiles
    config: EngineConfig
    trace: Path | None
    place: Place = Place()


class Submit(Message, frozen=True):
    number: int
    work: ShardWork


ToEngine = Load | Submit


class Entered(Message, frozen=True):
    """What the engine is busy with while it does not compute."""

    stage: str


class Loaded(Message, frozen=True):
    """It can compute, under these limits."""

    config: EngineConfig


class NotLoaded(Message, frozen=True):
    """It never will. `is_users`: the words are a UserError's."""

    words: str
    is_users: bool


class Finished(Message, frozen=True):
    """A request of the shard `number` ended."""

    number: int
    output: RequestOutput


class Done(Message, frozen=True):
    """The shard's last request ended. `order[i]` says which of its outputs, as they came, is the i-th request's."""

    number: int
    order: tuple[int, ...]


class Refused(Message, frozen=True):
    """The shard cannot run here: a UserError's words."""

    number: int
    words: str


class Pulse(Message, frozen=True):
    """All that was computed so far, in how many steps, and who has the device that the engine waits for."""

    computed: Computed
    steps: int
    waiting_for: str | None


class Logged(Message, frozen=True):
    logger: str
    level: int
    words: str


class Died(Message, frozen=True):
    """The last of all: what a step raised, and where."""

    words: str
    traceback: str


FromEngine = Entered | Loaded | NotLoaded | Finished | Done | Refused | Pulse | Logged | Died


def to_engine(message: ToEngine) -> bytes:
    return _encoder.encode(message)


def read_to_engine(frame: bytes) -> ToEngine:
    return _to_engine.decode(frame)


def from_engine(messages: Sequence[FromEngine]) -> bytes:
    return _encoder.encode(messages)


def read_from_engine(frame: bytes) -> list[FromEngine]:
    """Raises msgspec.MsgspecError for what is none of it."""
    return _from_engine.decode(frame)


def _encode(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return os.fsencode(value)  # a file's name need not be text
    raise NotImplementedError(f"{type(value)} is no plain data")


def _decode(kind: type, value: Any) -> object:
    if get_origin(kind) is np.ndarray:
        dtype, shape, content = value
        return np.ndarray(tuple(shape), np.dtype(dtype), bytearray(content))
    if kind is Path:
        return Path(os.fsdecode(value))
    raise NotImplementedError(f"{kind} is no plain data")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode)
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine, dec_hook=_decode)
_from_engine: msgspec.msgpack.Decoder[list[FromEngine]] = msgspec.msgpack.Decoder(list[FromEngine], dec_hook=_decode)
