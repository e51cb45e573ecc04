"""What goes between a run and its engine's process: plain data, in msgpack."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from engine.config import EngineConfig
from engine.machine.place import Place
from engine.model.checkpoint import ModelFiles
from engine.plan import ShardWork
from engine.process.plain_data import decode_hook, encode_hook
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


_encoder = msgspec.msgpack.Encoder(enc_hook=encode_hook)
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine, dec_hook=decode_hook)
_from_engine: msgspec.msgpack.Decoder[list[FromEngine]] = msgspec.msgpack.Decoder(
    list[FromEngine], dec_hook=decode_hook
)
