"""An engine's process through calls to whoever holds it, without a cluster."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tasks.cluster.far_child import FarChild
from tasks.engine_process.engine_child import EngineChild
from tasks.ray_cluster.device_actor import DeviceActor

FAKE = "tests.tasks.engine_process.fake_server"


class CallsHere(FarChild):
    """Calls an actor in this process, as Ray's would be called."""

    def __init__(self, actor: DeviceActor) -> None:
        super().__init__("played worker a")
        self.actor = actor
        self.gone: Exception | None = None
        self.released = False
        self.number = asyncio.run(actor.begin(FAKE))

    def kill(self) -> None:
        self._call("kill")

    def _asked(self, name: str, *arguments: object) -> Any:
        if self.gone is not None:
            raise self.gone
        return asyncio.run(self.actor.call(self.number, name, *arguments))

    def _release(self) -> None:
        self.released = True


@pytest.fixture
def child() -> Iterator[CallsHere]:
    made = CallsHere(DeviceActor())
    yield made
    asyncio.run(made.actor.call(made.number, "end", True))


def test_it_is_a_child_as_an_engine_needs_it(child: CallsHere) -> None:
    held: EngineChild = child
    held.kill()
    assert held.channel.receive() is None
    assert held.how_it_ended()[0].startswith("its process was killed (SIGKILL)")


def test_once_its_worker_is_gone_that_is_how_it_ended(child: CallsHere) -> None:
    child.gone = RuntimeError("the actor died")
    assert child.receive() is None
    assert (child.where(), child.how_it_ended()) == ("", ("its played worker a is gone", ""))
    assert child.released
    with pytest.raises(OSError, match=r"^the played worker a does not answer: the actor died$"):
        child.send(b"")
    child.gone = None


def test_another_in_its_place_is_not_asked_for_it(child: CallsHere) -> None:
    """Its device has one process at a time."""
    first = child.number
    child.number = asyncio.run(child.actor.begin(FAKE))
    with pytest.raises(OSError, match=r"^its process has ended$"):
        asyncio.run(child.actor.call(first, "kill"))
    child.kill()
    assert child.receive() is None
