"""What the bucket of an output folder promises, on a real S3 server: conditions, retries, errors for people."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="an extra: pip install trunkline[s3]")

import obstore
from obstore.exceptions import GenericError

from engine.errors import UserError
from engine.file_lock import HeldError, Holder
from tasks.storage.bucket import PIECE_BYTES, Bucket
from tasks.storage.bucket_errors import BucketUnavailableError, LeaseLostError, lasting
from tasks.storage.file_names import LOCK
from tasks.storage.lease import lease_holder, lease_seconds, open_bucket, take_lease

ONE, OTHER, THIRD = Holder(1, "one", "token-1"), Holder(2, "other", "token-2"), Holder(3, "third", "token-3")


@pytest.fixture
def bucket(s3_url: str, request: pytest.FixtureRequest) -> Bucket:
    """Its own part of the bucket for each test."""
    return open_bucket(f"{s3_url}/bucket/{request.node.name}")


def test_of_many_writers_of_one_name_one_wins(bucket: Bucket) -> None:
    won: list[tuple[int, int]] = []

    def write(writer: int) -> None:
        own = open_bucket(bucket.url)
        won.extend((name, writer) for name in range(8) if own.create(f"{name}", f"{writer}".encode()) is not None)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(name for name, _ in won) == list(range(8))
    for name, writer in won:
        found = bucket.get(f"{name}")
        assert found is not None
        assert found[0] == f"{writer}".encode()


def test_an_object_is_replaced_by_who_knows_it_alone(bucket: Bucket) -> None:
    first = bucket.create("a", b"1")
    assert first is not None
    second = bucket.update("a", b"2", first)
    assert second is not None
    assert bucket.update("a", b"3", first) is None
    assert bucket.update("b", b"3", first) is None
    found = bucket.get("a")
    assert found is not None
    assert (found[0], found[1].etag, found[1].size) == (b"2", second, 1)
    bucket.delete(["a", "a"])
    assert bucket.get("a") is None
    assert not bucket.has_any()


def _answers_lost(monkeypatch: pytest.MonkeyPatch, count: int, done: bool) -> None:
    """The first so many PUTs are answered by a broken connection, whether they were `done` or not."""
    put, left = obstore.put, [count]

    def broken(*arguments: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            if done:
                put(*arguments, **options)
            raise GenericError("Generic S3 error: HTTP error: connection closed")
        return put(*arguments, **options)

    monkeypatch.setattr(obstore, "put", broken)


def test_a_lost_answer_is_no_other_writer(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    _answers_lost(monkeypatch, 1, done=True)
    made = bucket.create("a", b"1")
    found = bucket.get("a")
    assert found is not None
    assert (made, found[0]) == (found[1].etag, b"1")
    assert bucket.create("a", b"2") is None, "another content is another's"


def test_what_may_pass_is_tried_again_and_said_in_the_end(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    _answers_lost(monkeypatch, 2, done=False)
    assert bucket.create("a", b"1") is not None
    _answers_lost(monkeypatch, 99, done=False)
    bucket.patience = 0.0
    with pytest.raises(UserError, match=r"does not answer; see to the network, or say another server"):
        bucket.create("b", b"1")
    bucket.begin()
    bucket.patience = 0.0
    with pytest.raises(BucketUnavailableError, match=r"^output: s3://results/bucket/.* does not answer, for 0 s"):
        bucket.create("b", b"1")


def test_large_objects_go_and_come_in_pieces(bucket: Bucket, tmp_path: Path) -> None:
    content = bytes(range(256)) * (PIECE_BYTES // 256) + b"end"
    (tmp_path / "large").write_bytes(content)
    bucket.put("large", tmp_path / "large")
    [(name, listed)] = bucket.listed().items()
    with (tmp_path / "read").open("wb") as file:
        assert bucket.read_into(file, name, listed)
    assert (tmp_path / "read").read_bytes() == content
    bucket.put("large", b"another")
    with (tmp_path / "read").open("wb") as file:
        assert not bucket.read_into(file, name, listed), "it is not the one that was listed"


def _said(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        action()
    said = str(refused.value)
    assert "\n" not in said
    return said


@pytest.mark.fault(25)
def test_what_is_wrong_is_one_line_with_its_cure(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = open_bucket("s3://there-is-none/out")
    assert _said(missing.has_any) == (
        "output: s3://there-is-none/out: refused (NoSuchBucket): create the bucket, or name another"
    )
    for name, value, code in (
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "nobody", "InvalidAccessKeyId"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            said = _said(open_bucket(f"{s3_url}/out").has_any)
        assert f"refused ({code}): check AWS_ACCESS_KEY_ID" in said
        assert value not in said
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    away = open_bucket(f"{s3_url}/out")
    away.patience = 0.0
    assert _said(away.has_any) == (
        f"output: {s3_url}/out: http://127.0.0.1:1 does not answer; see to the network, or say another server in "
        "AWS_ENDPOINT_URL"
    )


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("status code: 301: <Error><Code>PermanentRedirect</Code>", "in another region; say which in AWS_REGION"),
        ("Received redirect without LOCATION, this normally indicates an incorrectly configured region", "AWS_REGION"),
        ("status code: 400: <Error><Code>AuthorizationHeaderMalformed</Code>", "AWS_REGION"),
        ("PUT http://169.254.169.254/latest/api/token in 1 s - HTTP error", "no credentials are found; set AWS_"),
        ("status code: 400: <Error><Code>ExpiredToken</Code>", "AWS_SESSION_TOKEN"),
        ("status code: 403 Forbidden: <Error><Code>AccessDenied</Code>", "it needs ListBucket, GetObject, PutObject"),
        ("status code: 501: <Error><Code>NotImplemented</Code>", "the server knows no conditional writes"),
        ("status code: 503: <Error><Code>SlowDown</Code>", None),
        ("HTTP error: error sending request", None),
    ],
)
def test_what_amazon_says_and_no_server_here_does(said: str, cure: str | None) -> None:
    found = lasting(GenericError(said))
    assert (found is None) == (cure is None)
    assert cure is None or cure in (found or "")


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second is the least; an object's time is a whole one, so that it ends within three."""
    monkeypatch.setenv("TRUNKLINE_LEASE_SECONDS", "1")


def test_the_second_is_told_who_has_the_lease(bucket: Bucket) -> None:
    lease = take_lease(bucket, ONE, None)
    with pytest.raises(HeldError, match=r"^process 1 on one, whose lease ends in (6[01]|5\d) s unless it renews it$"):
        take_lease(bucket, OTHER, None)
    assert lease_holder(bucket) == ONE
    lease.release()
    assert lease_holder(bucket) is None
    take_lease(bucket, OTHER, None).release()


@pytest.mark.fault(3, 10)
def test_of_a_holder_that_is_dead_the_lease_is_free_at_once(bucket: Bucket) -> None:
    take_lease(bucket, ONE, None)
    take_lease(bucket, OTHER, ended=ONE.token)
    assert lease_holder(bucket) == OTHER


def test_a_lease_that_was_taken_though_the_answer_was_lost_is_ones_own(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_lease(bucket, ONE, None)
    put, lost = obstore.put, list[str]()

    def carry(store: Any, name: str, *rest: Any, mode: Any = None, **options: Any) -> Any:
        answer = put(store, name, *rest, mode=mode, **options)
        if name == LOCK and not lost:
            lost.append(name)
            raise GenericError("Generic S3 error: HTTP error: connection closed")
        return answer

    monkeypatch.setattr(obstore, "put", carry)
    lease = take_lease(bucket, OTHER, ended=ONE.token)
    assert lost == [LOCK]
    lease.check(anew=True)
    lease.release()
    assert lease_holder(bucket) is None


@pytest.mark.fault(9)
def test_who_takes_a_lease_later_is_told_who_was_faster(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    take_lease(bucket, ONE, None)
    update = bucket.update

    def late(name: str, content: bytes, etag: str) -> str | None:
        if name == LOCK:
            take_lease(open_bucket(bucket.url), THIRD, ended=ONE.token)
        return update(name, content, etag)

    monkeypatch.setattr(bucket, "update", late)
    with pytest.raises(HeldError, match=r"^process 3 on third, which was faster$"):
        take_lease(bucket, OTHER, ended=ONE.token)
    assert lease_holder(bucket) == THIRD


@pytest.mark.fault(9, 11)
def test_a_lease_that_is_not_renewed_is_lost(bucket: Bucket, short_lease: None) -> None:
    lease = take_lease(bucket, ONE, None)
    lease.check()
    taken = None
    for _ in range(40):
        try:
            taken = take_lease(bucket, OTHER, None)
            break
        except HeldError:
            threading.Event().wait(0.2)
    assert taken is not None
    with pytest.raises(LeaseLostError, match="the lease was lost: process 2 on other has it"):
        lease.check()
    lease.release()
    assert lease_holder(bucket) == OTHER, "who lost it gives nothing back"


def test_a_lease_is_renewed_while_it_is_held(bucket: Bucket, short_lease: None) -> None:
    lease = take_lease(bucket, ONE, None)
    beats = threading.Semaphore(0)
    lease.start()
    lease.beat = beats.release
    for _ in range(30):  # each a twelfth of a second
        assert beats.acquire(timeout=30)
    with pytest.raises(HeldError):
        take_lease(bucket, OTHER, None)
    lease.check()
    lease.release()


def test_a_server_that_heeds_no_conditions_is_refused(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    put = obstore.put

    def careless(*arguments: Any, **options: Any) -> Any:
        return put(*arguments, **{name: value for name, value in options.items() if name != "mode"})

    monkeypatch.setattr(obstore, "put", careless)
    with pytest.raises(UserError, match="does not heed If-None-Match and If-Match"):
        take_lease(bucket, ONE, None)
    assert bucket.get(LOCK) is None


@pytest.mark.parametrize("said", ["none", "0.5", "-1", "nan", "1e9"])
def test_a_setting_that_is_none(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_LEASE_SECONDS", said)
    with pytest.raises(UserError, match=f"TRUNKLINE_LEASE_SECONDS: '{said}' is not a number of seconds"):
        lease_seconds()
