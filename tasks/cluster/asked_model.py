"""The model as each worker of a cluster has it, which must be the run's."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec

from engine.errors import UserError
from engine.model.checkpoint import EMBEDDED, ModelFiles, resolve_model
from engine.process.plain_data import decode_hook, encode_hook

_VERSION = version("trunkline")


class Told(msgspec.Struct, frozen=True, array_like=True):
    """Which Trunkline a worker has, and the model that lies there; in its place the words why not."""

    trunkline: str
    model: ModelFiles | None
    words: str = ""


def tell_model(path: str) -> bytes:
    """A `Told`, by the worker, once it has read all of the model: minutes where that is large."""
    try:
        told = Told(_VERSION, resolve_model(path))
    except UserError as problem:
        told = Told(_VERSION, None, str(problem))
    except OSError as problem:
        told = Told(_VERSION, None, f"model.path: {path} cannot be read: {problem.strerror or problem}")
    return msgspec.msgpack.encode(told, enc_hook=encode_hook)


@dataclass(frozen=True, slots=True)
class AskedModel:
    """The model as the job names it and as it lies here; a worker's must have the same content."""

    path: str
    here: ModelFiles

    @property
    def there(self) -> str:
        """What a worker looks for: it may have another working directory."""
        return self.path if self.path == EMBEDDED else str(Path(self.path).expanduser().absolute())

    def read(self, told: bytes, address: str) -> ModelFiles:
        """The worker's model. Raises UserError for another one, for none, or for another Trunkline."""
        try:
            found = msgspec.msgpack.decode(told, type=Told, dec_hook=decode_hook)
        except msgspec.MsgspecError:
            raise UserError(f"runner: another Trunkline than {_VERSION} is installed on {address}") from None
        if found.trunkline != _VERSION:
            raise UserError(f"runner: Trunkline is {found.trunkline} on {address} and {_VERSION} here; install one")
        if found.model is None:
            raise UserError(f"{found.words} (on {address})")
        if found.model.fingerprint != self.here.fingerprint:
            raise UserError(f"model.path: another model lies at {self.there} (on {address})")
        return found.model
