"""A bucket behind a link that is slow, silent, or gone for a while, on a real S3 server."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="an extra: pip install trunkline[s3]")

import obstore
from obstore.exceptions import GenericError

from engine.errors import UserError
from tasks.storage import bucket as bucket_module
from tasks.storage.bucket import Bucket
from tasks.storage.bucket_errors import BucketUnavailableError
from tests.slow_link import slow_link

REQUEST_SECONDS = 0.4
MEGABYTE = os.urandom(2**20)


@pytest.fixture
def url(s3_url: str, request: pytest.FixtureRequest) -> str:
    return f"{s3_url}/links/{request.node.name}"


def test_a_slow_link_that_moves_brings_all(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second for what a request for a lease has 0.4 for."""
    with slow_link(os.environ["AWS_ENDPOINT_URL"], 2**20) as link:
        monkeypatch.setenv("AWS_ENDPOINT_URL", link)
        bucket = Bucket(url, REQUEST_SECONDS)
        bucket.patience = 0.0
        bucket.put("parts/a", MEGABYTE, may_be_late=True)
        found = bucket.get("parts/a")
        assert found is not None
        assert found[0] == MEGABYTE
        with (tmp_path / "a").open("wb") as file:
            assert bucket.read_into(file, "parts/a", found[1])
        assert (tmp_path / "a").read_bytes() == MEGABYTE
        with pytest.raises(UserError, match="does not answer"):
            bucket.put("results.duckdb", MEGABYTE)  # a lease is given up behind what is sent in its name


def test_who_reads_tries_again_where_nothing_came(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that ends by its time alone has used up all patience."""
    Bucket(url, 20.0).put("a", b"1")
    with slow_link(os.environ["AWS_ENDPOINT_URL"], 2**30, dead=1) as link:
        monkeypatch.setenv("AWS_ENDPOINT_URL", link)
        bucket = Bucket(url, REQUEST_SECONDS)
        bucket.patience = 0.0
        assert [*bucket.listed()] == ["a"]


def _broken(monkeypatch: pytest.MonkeyPatch, said: str) -> list[str]:
    """No PUT is answered; the names that were asked for."""
    asked: list[str] = []

    def broken(_: Any, name: str, *arguments: Any, **options: Any) -> Any:
        asked.append(name)
        raise GenericError(said)

    monkeypatch.setattr(obstore, "put", broken)
    return asked


def _ended(action: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    ended: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as problem:
            ended.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, ended


def test_who_hurries_waits_for_an_outage_no_longer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait that goes on ends, and what is asked behind it is not tried."""
    monkeypatch.setattr(bucket_module, "FIRST_PATIENCE", 0.5)
    bucket = Bucket(url, 20.0)
    bucket.begin()
    with monkeypatch.context() as away:
        asked = _broken(away, "Generic S3 error: HTTP error: error sending request")
        waiting, ended = _ended(lambda: bucket.put("a", b"1"))
        while len(asked) < 5:  # from here on pauses are of a second and more
            time.sleep(0.01)
        began = time.monotonic()
        bucket.hurry()
        waiting.join(timeout=60)
        tries = len(asked)
        for name in "bcd":
            with pytest.raises(BucketUnavailableError):
                bucket.put(name, b"1")
        assert time.monotonic() - began < 0.9
        assert [type(problem) for problem in ended] == [BucketUnavailableError]
        assert (len(asked), {*asked}) == (tries, {"a"})
    bucket.end()
    bucket.put("b", b"1")
    assert [*bucket.listed()] == ["b"]


def test_the_server_of_a_role_may_be_away_once_there_were_keys(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1 s - HTTP error"
    bucket = Bucket(url, 20.0)
    with monkeypatch.context() as away:
        _broken(away, said)
        with pytest.raises(UserError, match="no credentials are found"):
            bucket.put("a", b"1")
    bucket.put("a", b"1")
    bucket.begin()
    bucket.patience = 0.0
    _broken(monkeypatch, said)
    with pytest.raises(BucketUnavailableError, match="the server that gives keys to this machine's role does not answ"):
        bucket.put("a", b"1")
