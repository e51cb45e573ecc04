"""A Ray cluster of nodes that others began, to which a run comes as a guest."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="an extra: pip install trunkline[ray]")

import ray
from ray._private.authentication_test_utils import reset_auth_token_state

from engine.errors import UserError
from engine.model.checkpoint import resolve_model
from tasks.cluster.asked_model import AskedModel
from tasks.ray_cluster.ray_child import RayChild
from tasks.ray_cluster.ray_workers import ray_workers
from tests.tasks.engine_process.test_engine_process import CONFIG, assert_equal, wait_for, work
from tests.tasks.fakes import write_model

FAKE = "tests.tasks.engine_process.fake_server"
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--disable-usage-stats"]

pytestmark = pytest.mark.nightly

StartNode = Callable[..., None]


class NotThere:
    def __init__(self) -> None:
        raise ModuleNotFoundError("No module named 'tasks'")

    async def tell(self, path: str) -> bytes:
        return b""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AskedModel:
    monkeypatch.setattr("tasks.ray_cluster.ray_workers.RayChild", lambda *of: RayChild(*of, FAKE))
    monkeypatch.setattr("tasks.cluster.cluster_workers.LOOK_SECONDS", 0.2)
    folder = str(write_model(tmp_path / "fine"))
    return AskedModel(folder, resolve_model(folder))


@pytest.fixture
def start_node() -> Iterator[StartNode]:
    """Starts one on this machine, of one CPU, which ends with the test."""
    with ExitStack() as stack:

        def start(*options: str) -> None:
            quiet = subprocess.DEVNULL
            # Ray begins with a token where it finds one, and lets nobody in who was not told of that.
            open_to_all = os.environ | {"RAY_AUTH_MODE": "disabled"}
            node = psutil.Popen([*RAY, *options], stdin=quiet, stdout=quiet, stderr=quiet, env=open_to_all)
            stack.callback(_end, node)

        yield start


@pytest.fixture
def head(start_node: StartNode, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address. This process has no token for it, also where it had a Ray of its own before."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    reset_auth_token_state()
    with closing(socket.socket()) as found:
        found.bind(("", 0))
        port = found.getsockname()[1]
    # A test's own folder has too long a name for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        start_node("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
        wait_for(lambda: _answers(port))
        yield f"127.0.0.1:{port}"


def _answers(port: int) -> bool:
    with closing(socket.socket()) as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _end(node: psutil.Popen) -> None:
    began = [node, *node.children(recursive=True)]
    for one in began:
        if one.is_running():
            one.kill()
    psutil.wait_procs(began, 10)


def test_a_node_that_comes_late_is_taken_in(head: str, model: AskedModel, start_node: StartNode) -> None:
    with ray_workers(model, CONFIG, head, 1, ()) as workers:
        [first] = workers.each()
        assert_equal(first.submit(work(2)).result(10), work(2).requests)
        start_node(f"--address={head}")
        wait_for(lambda: len(workers.each()) == 2)
        [second] = {*workers.each()} - {first}
        assert_equal(second.submit(work(2)).result(10), work(2).requests)
    assert not ray.is_initialized()


def test_more_workers_than_there_are(head: str, model: AskedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.cluster.cluster_workers.SECONDS_TO_JOIN", 0.5)
    said = r"^runner: 1 of 2 Ray workers joined in 0\.5 s; start more nodes \(`ray start "
    with pytest.raises(UserError, match=said), ray_workers(model, CONFIG, head, 2, ()):
        pass


def test_a_cluster_of_another_version_is_told(head: str, model: AskedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.__version__", "1.0.0")
    said = r"^ray_address: the cluster has another version of Ray or Python, install the same here: .*1\.0\.0"
    with pytest.raises(UserError, match=said), ray_workers(model, CONFIG, head, 1, ()):
        pass


def test_a_node_without_trunkline_is_told(head: str, model: AskedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.ray_cluster.ray_workers.DeviceActor", NotThere)
    said = "^runner: a Ray worker needs the run's environment: .*ModuleNotFoundError"
    with pytest.raises(UserError, match=said), ray_workers(model, CONFIG, head, 1, ()):
        pass
