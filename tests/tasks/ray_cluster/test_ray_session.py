"""A process's connection to Ray, and what Ray's client raises, without a cluster."""

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="an extra: pip install trunkline[ray]")

import ray

from engine.errors import EngineLostError, UserError
from tasks.ray_cluster import ray_session
from tasks.ray_cluster.ray_child import RayChild
from tasks.ray_cluster.ray_session import joined_ray


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The addresses that Ray is connected to, which nobody looks for."""
    now = list[str]()
    monkeypatch.setattr(ray, "init", lambda address, **_: now.append(address))
    monkeypatch.setattr(ray, "shutdown", now.clear)
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(now))
    monkeypatch.setattr(ray_session, "_look_for", lambda _: None)
    yield now
    assert now == []


def test_a_second_run_does_not_share_the_connection_of_the_first(connected: list[str]) -> None:
    said = "^runner: another run of this process is connected to Ray; run this one in a process of its own$"
    with joined_ray("one:6379"):
        with pytest.raises(UserError, match=said), joined_ray("other:6379"):
            pass
        assert connected == ["one:6379"]


def test_sigterm_stays_the_programs_in_a_run_of_any_thread(
    connected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray takes it below Python, where Python does not see it, and leaves it to the system."""
    heard = list[int]()
    set_below, ignored = ctypes.CDLL(None).signal, ctypes.c_void_p(signal.SIG_IGN)
    monkeypatch.setattr(ray, "init", lambda address, **_: (connected.append(address), set_below(15, ignored)))
    monkeypatch.setattr(ray, "shutdown", lambda: (connected.clear(), set_below(15, ignored)))

    def is_heard() -> bool:
        before = len(heard)
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 10
        while len(heard) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(heard) > before

    def run() -> bool:
        with joined_ray("one:6379"):
            return is_heard()

    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(run).result()
        assert is_heard()
        assert run()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_programs_own_connection_is_shared_and_goes_on(connected: list[str]) -> None:
    ray.init("its own")
    with joined_ray("auto"), joined_ray("auto"):
        pass
    assert connected == ["its own"]
    ray.shutdown()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (f"{'a' * 64}:6379", r"nobody answers at a{64}:6379 \(.+\)"),
        ("host:99999", "host:99999 has no port that there is, the last is 65535"),
        ("ray://host:65536", "ray://host:65536 has no port that there is, the last is 65535"),
    ],
)
def test_an_address_that_there_cannot_be_is_one_line(address: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^ray_address: {said}$"), joined_ray(address):
        pass


def test_a_client_whose_server_is_away_has_lost_its_engines() -> None:
    def away(server: str) -> Any:
        raise ConnectionError("Client is not connected")

    actor = SimpleNamespace(begin=SimpleNamespace(remote=away))
    with pytest.raises(EngineLostError, match=r"^the Ray worker host#1 starts no engine: it is gone$"):
        RayChild(actor, "host#1")
