"""This process's connection to Ray, of which it has one at a time."""

import ctypes
import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from threading import Event, Lock, Thread
from typing import Any

import ray

from engine.errors import UserError

AUTO, CLIENT = "auto", "ray://"
SECONDS_TO_CONNECT, SECONDS_TO_LEAVE = 20.0, 30.0
# Frames of more than 100 kB pass through it.
OBJECT_STORE_BYTES = 256 * 2**20
# Ray binds sockets below it, whose whole paths may have 107 bytes: TMPDIR may be too long for that.
FOLDER = "/tmp"
_LAST_PORT = 65_535
# What `struct sigaction` has is at most 152 bytes, on Linux.
_SIGACTION, _SIGACTION_BYTES = ctypes.CDLL(None).sigaction, 256

_TAKEN = "runner: another run of this process is connected to Ray; run this one in a process of its own"
_turn = Lock()


def has_joined() -> bool:
    """Whether the program is connected to Ray itself. Raises UserError where another run of this process is."""
    if _turn.locked():
        raise UserError(_TAKEN)
    joined: bool = ray.is_initialized()
    return joined


@contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """The cluster at `auto`, `ray://host:port` or `host:port`.

    Where this process is connected to Ray already, as a job of Ray's is, that is the cluster, and goes on.

    Raises UserError where nobody answers, or another version of Ray or Python does, or another run is connected.
    """
    if has_joined():
        yield
        return
    _look_for(address)
    with _held("ray_address", {"address": address}):
        yield


@contextmanager
def own_ray(cpus: int, gpus: int) -> Iterator[None]:
    """A cluster of this machine's own, which ends with the context: it reports to nobody, shows nothing to a browser
    and leaves no file, unless this process is killed. Raises UserError where Ray does not begin.
    """
    with (
        TemporaryDirectory(prefix="trunkline-ray-", dir=FOLDER, ignore_cleanup_errors=True) as folder,
        _set(RAY_USAGE_STATS_ENABLED="0"),
    ):
        asked = {
            "address": "local",
            "num_cpus": cpus,
            "num_gpus": gpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            # One below, for Ray lets everybody into it.
            "_temp_dir": f"{folder}/ray",
            # The kernel takes an engine's process where memory is short, and a run starts another.
            "_system_config": {"memory_monitor_refresh_ms": 0},
        }
        with _held("runner", asked):
            yield


@contextmanager
def _held(key: str, asked: Mapping[str, Any]) -> Iterator[None]:
    """A connection that a thread of its own holds.

    The kernel ends what Ray starts when the thread ends that started it, so that it may not be one of a pool's; and in
    the main thread Ray would put its own handler of SIGTERM in the place of the run's, also in Python.
    """
    if not _turn.acquire(blocking=False):
        raise UserError(_TAKEN)
    begun: Future[None] = Future()
    over = Event()

    def hold() -> None:
        try:
            with _sigterm_as_it_is():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **asked)
        except BaseException as problem:  # SystemExit too, which is how it ends where its cluster does not answer
            begun.set_exception(UserError(f"{key}: {_words(problem)}"))
        else:
            begun.set_result(None)
            over.wait()
        with _sigterm_as_it_is():
            ray.shutdown()

    thread = Thread(target=hold, name="trunkline-ray", daemon=True)
    thread.start()
    try:
        begun.result()
        yield
    finally:
        over.set()
        thread.join(SECONDS_TO_LEAVE)
        _turn.release()


@contextmanager
def _sigterm_as_it_is() -> Iterator[None]:
    """Ray puts a handler below Python's that prints where the process is, and aborts it; and the system's own when it
    leaves. Python changes handlers in the main thread alone, C in any.
    """
    kept = ctypes.create_string_buffer(_SIGACTION_BYTES)
    _SIGACTION(signal.SIGTERM, None, kept)
    try:
        yield
    finally:
        _SIGACTION(signal.SIGTERM, kept, None)


def _look_for(address: str) -> None:
    """Ray itself tries for two minutes, and ends the process where it is told of no cluster."""
    if address == AUTO:
        return
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if int(port) > _LAST_PORT:
        raise UserError(f"ray_address: {address} has no port that there is, the last is {_LAST_PORT}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT).close()
    except (OSError, ValueError) as problem:  # the second for what is no host's name
        words = getattr(problem, "strerror", None) or problem
        raise UserError(f"ray_address: nobody answers at {address} ({words})") from problem


def _words(problem: BaseException) -> str:
    """In one line: Ray's have several."""
    said = " ".join(str(problem).split())
    if "Version mismatch" in said:
        return f"the cluster has another version of Ray or Python, install the same here: {said}"
    if "could not find any running ray instance" in said.lower():
        return "no Ray cluster is found on this machine; start one with `ray start`, or name one as host:port"
    if isinstance(problem, ConnectionError):
        return f"{said}; where that has tokens, set RAY_AUTH_MODE=token, and have its token in ~/.ray/auth_token"
    return f"Ray does not connect: {type(problem).__name__}: {said}"


@contextmanager
def _set(**variables: str) -> Iterator[None]:
    """What Ray reads of the environment, here and in what it starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
