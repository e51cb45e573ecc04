"""The server that a run brings up for itself: only where it has to, and told where it does not come up."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flows.temporary_server import in_rounds

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


def test_prefects_background_worker_works_in_rounds_and_does_what_came_between() -> None:
    from docket import Docket
    from prefect.server.api.background_workers import background_worker

    done: list[str] = []

    async def note(word: str) -> None:
        done.append(word)

    async def until(words: list[str]) -> None:
        async with asyncio.timeout(20):
            while done != words:
                await asyncio.sleep(0.02)

    rounds: list[str] = []

    @asynccontextmanager
    async def counted(docket: Docket, **modes: bool) -> AsyncIterator[None]:
        rounds.append("begun")
        try:
            async with background_worker(docket, **modes):
                yield
        finally:
            rounds.append("ended")

    async def run() -> None:
        async with Docket(name="rounds", url="memory://rounds") as docket:
            docket.register(note)
            async with in_rounds(counted, at_work=0.5, at_rest=0.2)(docket, webserver_only=True):
                await docket.add(note)("first")
                await until(["first"])
                while rounds[-1] != "ended":
                    await asyncio.sleep(0.02)
                await docket.add(note)("between")
                await until(["first", "between"])
            assert rounds == ["begun", "ended"] * (len(rounds) // 2)
            ended = len(rounds)
            await asyncio.sleep(0.5)
            assert len(rounds) == ended >= 4

    asyncio.run(run())


def test_a_server_that_stops_while_a_round_ends_waits_for_what_is_under_way_alone() -> None:
    from docket import Docket
    from prefect.server.api.background_workers import background_worker

    async def run() -> float:
        async def slow() -> None:
            await asyncio.sleep(0.5)

        async with Docket(name="stop", url="memory://stop") as docket:
            docket.register(slow)
            async with in_rounds(background_worker, at_work=0.2, at_rest=60.0)(docket, webserver_only=True):
                await docket.add(slow)()
                await asyncio.sleep(0.4)  # the round has ended, and its worker waits for `slow`
                began = time.monotonic()
        return time.monotonic() - began

    assert asyncio.run(asyncio.wait_for(run(), 20)) < 5


def test_a_round_that_fails_is_told_and_the_next_one_tries_again(caplog: pytest.LogCaptureFixture) -> None:
    rounds: list[int] = []

    @asynccontextmanager
    async def worker() -> AsyncIterator[None]:
        rounds.append(len(rounds))
        if len(rounds) == 2:
            raise OSError("once")
        yield

    async def run() -> None:
        async with in_rounds(worker, at_work=0.01, at_rest=0.01)(), asyncio.timeout(20):
            while len(rounds) < 4:
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records if "background worker" in record.getMessage()] == [
        "Prefect's background worker: OSError('once'); tried again in 0 s"
    ]
