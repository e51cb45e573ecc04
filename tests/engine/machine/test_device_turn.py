"""Two processes on one device: one computes, the other waits and says for whom."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.errors import EngineClosedError
from engine.loop.engine import Engine
from engine.machine.device import Device
from engine.machine.device_turn import DeviceTurn, lock_names

ROOT = Path(__file__).parents[3]
NAMES = ("core-0", "core-1")

HOLDER = """
from engine.machine.device_turn import DeviceTurn

turn = DeviceTurn({names})
turn.take("here", given_up=lambda: False)
print("taken", flush=True)
input()
turn.give("here")
print("given", flush=True)
input()
"""


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path))


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    """A process that has the second core."""
    program = HOLDER.format(names=NAMES[1:])
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        expect(process, "taken")
        yield process
        process.kill()


def expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{word}\n"


def wait_for_somebody(turn: DeviceTurn) -> str:
    deadline = time.monotonic() + 60
    while turn.waiting_for is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return turn.waiting_for


class Waiting:
    """A thread of this process that takes a turn."""

    def __init__(self, turn: DeviceTurn) -> None:
        self.gave_up = False
        self.thread = threading.Thread(target=turn.take, args=(self,), kwargs={"given_up": lambda: self.gave_up})
        self.thread.start()


@pytest.mark.parametrize("end", ["dies", "gives"])
def test_a_second_process_waits_until_the_first_dies_or_gives(end: str, other: subprocess.Popen[str]) -> None:
    turn = DeviceTurn(NAMES)
    waiting = Waiting(turn)
    assert wait_for_somebody(turn).startswith(f"process {other.pid} on ")
    assert waiting.thread.is_alive()
    if end == "dies":
        other.send_signal(signal.SIGKILL)
    else:
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
    waiting.thread.join(60)
    assert not waiting.thread.is_alive()
    assert turn.waiting_for is None


def test_other_cores_are_free(other: subprocess.Popen[str]) -> None:
    DeviceTurn(NAMES[:1]).take("here", given_up=lambda: pytest.fail("it waited"))


def test_engines_of_one_process_share_their_turn(other: subprocess.Popen[str]) -> None:
    mine = DeviceTurn(NAMES[:1])
    mine.take("one", given_up=lambda: False)
    mine.take("two", given_up=lambda: False)
    rival = DeviceTurn(NAMES[:1])
    mine.give("one")
    waiting = Waiting(rival)
    wait_for_somebody(rival)
    mine.give("two")
    waiting.thread.join(60)
    assert rival.waiting_for is None


def test_an_engine_that_is_closed_while_it_waits_ends_at_once(other: subprocess.Popen[str]) -> None:
    turn = DeviceTurn(NAMES)
    waiting = Engine(lambda: pytest.fail("it loaded"), EngineConfig(), turn=turn)
    wait_for_somebody(turn)
    waiting.close()
    with pytest.raises(EngineClosedError):
        waiting.wait_until_loaded()


def test_an_idle_engine_lets_others_have_the_device() -> None:
    shape: Any = SimpleNamespace(max_model_len=64, vocab_size=8, eos_token_ids=(0,))
    device = SimpleNamespace(name="cpu")
    model = SimpleNamespace(shape=shape)
    runner: Any = SimpleNamespace(num_blocks=8, num_steps_ahead=0, device=device, model=model, close=lambda: None)
    turn = DeviceTurn(NAMES, keep_seconds=0.05)
    idle = Engine(lambda: (runner, EngineConfig()), EngineConfig(), turn=turn)
    idle.wait_until_loaded()
    waiting = Waiting(DeviceTurn(NAMES))
    waiting.thread.join(60)
    assert not waiting.thread.is_alive()
    idle.close()


@pytest.mark.parametrize(
    ("name", "cores", "visible", "names"),
    [
        ("cpu", 2, "", ("core-4", "core-6")),
        ("cpu", 1, "", ()),  # given fewer threads than there are cores, it is meant to run beside others
        ("cuda:1", 1, "", ("cuda-1",)),
        ("cuda:0", 1, "3,1", ("cuda-3",)),
    ],
)
def test_what_is_locked(
    monkeypatch: pytest.MonkeyPatch, name: str, cores: int, visible: str, names: tuple[str, ...]
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {6, 4})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert lock_names(Device(name, "float32", name, cores)) == names
