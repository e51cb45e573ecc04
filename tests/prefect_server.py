"""A Prefect server for tests: the one that a run brings up for itself, on a database that is there already."""

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import create_server

import httpx
import pytest

from flows import temporary_server

SECONDS_TO_START = 120
# Nothing here is garbage, and nothing of it is kept.
MIGRATE = """
import asyncio, gc
gc.disable()
from prefect.server.database import provide_database_interface
asyncio.run(provide_database_interface().create_db())
"""


def make_database(shared: Path) -> Path:
    """A database of Prefect's as a new home has it, made once in a folder that tests' processes share.

    Prefect migrates a new one through all of its versions, which takes four seconds of a processor; a copy takes none.
    `tests/test_offline.py` has a home without one, as a user's first run has.
    """
    database = shared / "prefect" / "prefect.db"
    with (shared / "prefect.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            given = os.environ | {"PREFECT_HOME": str(shared / "making")}
            subprocess.run([sys.executable, "-c", MIGRATE], env=given, check=True)
            with closing(sqlite3.connect(shared / "making" / "prefect.db")) as made:
                made.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (shared / "making").rename(database.parent)
    return database


def home_with(database: Path, home: Path) -> Path:
    """A new `PREFECT_HOME` with a copy of the database."""
    home.mkdir()
    shutil.copy(database, home / "prefect.db")
    return home


@contextmanager
def server_of_tests(database: Path) -> Iterator[None]:
    """Prefect's own harness, but for the server, whose background worker rests, and its database, a copy."""
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL, get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    def start(server: SubprocessASGIServer) -> "subprocess.Popen[bytes]":
        _, _, copy = PREFECT_SERVER_DATABASE_CONNECTION_URL.value().partition(":///")
        shutil.copy(database, copy)
        given = os.environ | get_current_settings().to_environment_variables(exclude_unset=True)
        with create_server(("127.0.0.1", server.port or 0)) as listening:
            command = [sys.executable, "-P", temporary_server.__file__, str(listening.fileno())]
            process = subprocess.Popen(command, env=given, pass_fds=[listening.fileno()])
        httpx.get(f"{server.api_url}/health", timeout=SECONDS_TO_START, trust_env=False)  # the harness waits for five
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SubprocessASGIServer, "_run_uvicorn_command", start)
        with prefect_test_harness(server_startup_timeout=SECONDS_TO_START):
            yield
