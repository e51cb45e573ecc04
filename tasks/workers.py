"""Who computes for a run, wherever that is."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import astuple, dataclass, field, replace
from typing import Protocol

from engine.config import EngineConfig
from engine.plan import ShardWork
from engine.request import RequestOutput

OnOutput = Callable[[RequestOutput], None]


@dataclass(frozen=True, slots=True)
class Computed:
    """What was computed: finished requests, and tokens of prompts, of labels and of answers.

    It took `busy_seconds`, of which a device at its limit would have needed `limit_seconds`, in `steps` steps.
    `kv_bytes` are in use now, and `going` are the tokens so far of each text that goes on.
    """

    requests: int = 0
    prefill: int = 0
    label: int = 0
    decode: int = 0
    busy_seconds: float = field(default=0.0, compare=False)
    limit_seconds: float = field(default=0.0, compare=False)
    steps: int = field(default=0, compare=False)
    kv_bytes: int = field(default=0, compare=False)
    going: tuple[int, ...] = field(default=(), compare=False)

    @property
    def prompt(self) -> int:
        """Tokens of prompts and labels, which are computed many at a time."""
        return self.prefill + self.label

    @property
    def tokens(self) -> int:
        return self.prompt + self.decode

    def __add__(self, other: "Computed") -> "Computed":
        return Computed(
            self.requests + other.requests,
            self.prefill + other.prefill,
            self.label + other.label,
            self.decode + other.decode,
            self.busy_seconds + other.busy_seconds,
            self.limit_seconds + other.limit_seconds,
            self.steps + other.steps,
            self.kv_bytes + other.kv_bytes,
            self.going + other.going,
        )

    def __sub__(self, other: "Computed") -> "Computed":
        return self + Computed(*(-value for value in astuple(replace(other, going=()))[:-1]))

    @property
    def limit_share(self) -> float | None:
        """The part of the device's limit that was reached; None where nothing was computed, or where steps were faster
        than the limit, which the machine was too busy to be asked for.
        """
        return self.limit_seconds / self.busy_seconds if 0 < self.limit_seconds <= self.busy_seconds else None


class Worker(Protocol):
    """Who computes a shard: one engine at a time, which is replaced in its place where it died."""

    @property
    def label(self) -> str:
        """What a person calls it."""

    def submit(self, work: ShardWork, on_output: OnOutput | None = None) -> "Future[list[RequestOutput]]":
        """A shard's outputs, in the order of its requests; waits for the model. `on_output` gets each as it ends.

        Raises EngineDeadError where another try may help, EngineLostError where none here ever will, and
        EngineClosedError after `close`.
        """


class Workers(Protocol):
    """What a run needs of those who compute for it. All of it may be called from any thread."""

    def start(self) -> None:
        """Begins to load the model, and returns before it is loaded.

        Raises UserError for one that cannot be, where that is known so soon; else `config` and `submit` do.
        """

    def config(self) -> EngineConfig:
        """The limits that requests are computed under, with nothing left open; waits for the model where it must."""

    def each(self) -> Sequence[Worker]:
        """Those that shards can be given to now: the same objects in every call, with who came meanwhile."""

    def totals(self) -> Computed:
        """All that was computed so far."""

    @property
    def stage(self) -> str | None:
        """What they do before they can compute; None once they can."""

    @property
    def waiting_for(self) -> str | None:
        """Who has the device that they wait for."""

    def close(self) -> None:
        """Ends them at once. Whoever waits for a shard or for the model gets EngineClosedError."""
