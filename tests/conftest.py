"""Fixtures for all tests: a model that takes no time, a Prefect that leaves nothing behind."""

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Until all tests are collected: what is imported is no garbage, and to look for some took a third of that time.
gc.disable()

# A loaded machine is slow now and then; examples have no deadline.
settings.register_profile("trunkline", deadline=None)
settings.load_profile("trunkline")

# Before anything imports prefect: neither the user's Prefect nor the folder of their latest run is touched.
_HOME = tempfile.TemporaryDirectory(prefix="trunkline-tests-")
os.environ["PREFECT_HOME"] = f"{_HOME.name}/prefect"
os.environ["XDG_STATE_HOME"] = f"{_HOME.name}/state"
# Tests run side by side, one a core; OpenMP's workers would fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton's kernels run in its interpreter. It is read when a kernel is defined, so before any is imported.
os.environ["TRITON_INTERPRET"] = "1"
for _name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "FAILPOINT"):
    os.environ.pop(_name, None)

# A shell's background job begins with it ignored; the tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import flows  # noqa: E402  # switches Prefect's telemetry off

assert flows.__doc__


# A worker takes whole files. These are the longest, and the first: what is left for the end is short.
LONGEST = (
    "tests/tasks/test_any_sequence.py",
    "tests/test_readme.py",
    "tests/flows/test_score.py",
    "tests/flows/test_killed_runs.py",
    "tests/tasks/test_kill.py",
    "tests/tasks/test_kill_at_random.py",
    "tests/engine/test_processors.py",
    "tests/flows/test_server_dies.py",
    "tests/flows/test_deployment.py",
    "tests/test_example_parity.py",
    "tests/flows/harness/test_embedded.py",
    "tests/engine/test_models.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {str(Path(__file__).parents[1] / name): number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(str(item.path), len(LONGEST)))


def pytest_collection_finish() -> None:
    if "triton.runtime.interpreter" in sys.modules:
        from tests.quick_interpreter import quicken

        quicken()
    gc.freeze()  # neither a test's collections nor those of its forks look through it again
    gc.enable()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with the embedded model's tokenizer and chat template."""
    from tests.tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of a real S3 server of this session's; the environment says how it is reached."""
    from tests.s3_server import BUCKET, s3_server

    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}"


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`prefect.db` of a new Prefect home, to be copied; one for all processes that run tests."""
    from tests.prefect_server import make_database

    folder = tmp_path_factory.getbasetemp()
    return make_database(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


@pytest.fixture(scope="session")
def prefect_server(migrated_database: Path) -> Iterator[None]:
    """One Prefect server for all flow tests of the session."""
    from tests.prefect_server import server_of_tests

    with server_of_tests(migrated_database):
        yield
