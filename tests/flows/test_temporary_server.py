"""The server that a run brings up for itself: only where it has to, and told where it does not come up."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
from flows.temporary_server import start_server
server = start_server()
if server is None:
    print("none is needed")
else:
    try:
        server.wait_until_ready()
    except ConnectionError as problem:
        print(problem)
"""


def start(folder: Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    given = kept | {"PREFECT_HOME": str(folder), "PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=given, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_none_is_started_where_the_user_has_one(tmp_path: Path) -> None:
    assert start(tmp_path, PREFECT_API_URL="http://127.0.0.1:1/api") == "none is needed"
    assert start(tmp_path, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false") == "none is needed"


def test_a_server_that_ends_at_its_start_is_told(tmp_path: Path) -> None:
    nowhere = f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/prefect.db"
    said = start(tmp_path, PREFECT_API_DATABASE_CONNECTION_URL=nowhere)
    assert said.startswith("Prefect's temporary server does not come up (")
