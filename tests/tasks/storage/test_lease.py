"""A lease whose renewals are carried out, but whose answers are lost for longer than it lasts, on a real S3 server."""

from typing import Any

import pytest

pytest.importorskip("obstore", reason="an extra: pip install trunkline[s3]")

import obstore
from obstore.exceptions import GenericError

from engine.file_lock import Holder
from tasks.storage import lease as lease_module
from tasks.storage.bucket import Bucket
from tasks.storage.bucket_errors import BucketUnavailableError
from tasks.storage.lease import Lease, lease_holder, open_bucket, take_lease

ONE = Holder(1, "one", "token-1")
AWAY_SECONDS, COMMIT_SECONDS = 100.0, 30.0

pytestmark = pytest.mark.fault(9)


class Link:
    """Carries PUTs out, and loses the answers of the next `losing`, after each of which it is away for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.losing, self.now, self.written = 0, 1000.0, 0.0
        self._put = obstore.put
        monkeypatch.setattr(obstore, "put", self._carry)
        monkeypatch.setattr(lease_module, "_now", lambda: self.now)

    def _carry(self, *arguments: Any, **options: Any) -> Any:
        answer = self._put(*arguments, **options)
        self.written = self.now
        if self.losing:
            self.losing -= 1
            self.now += AWAY_SECONDS
            raise GenericError("Generic S3 error: HTTP error: connection closed")
        return answer


@pytest.fixture
def bucket(s3_url: str, request: pytest.FixtureRequest) -> Bucket:
    return open_bucket(f"{s3_url}/leases/{request.node.name}")


@pytest.fixture
def lease(bucket: Bucket) -> Lease:
    return take_lease(bucket, ONE, None)


@pytest.fixture
def link(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> Link:
    """Behind the lease, which was taken at its best."""
    found = Link(monkeypatch)
    monkeypatch.setattr(lease, "_renewed", found.now)
    return found


@pytest.mark.parametrize("anew", [False, True])
def test_an_object_of_an_earlier_try_is_written_anew_before_a_commit(lease: Lease, link: Link, anew: bool) -> None:
    link.now += COMMIT_SECONDS + 1
    link.losing = 1
    lease.check(anew=anew)
    assert link.now - link.written <= COMMIT_SECONDS


def test_so_is_one_of_a_renewal_that_was_given_up(lease: Lease, link: Link, bucket: Bucket) -> None:
    bucket.begin()
    bucket.patience = 0.0
    link.losing = 1
    with pytest.raises(BucketUnavailableError):
        lease.check(anew=True)
    lease.check(anew=True)
    assert link.now - link.written <= COMMIT_SECONDS


def test_answers_that_are_always_late_allow_no_commit(lease: Lease, link: Link) -> None:
    link.losing = 99
    with pytest.raises(BucketUnavailableError, match=r"leases/.*: answers come too late to hold the lease$"):
        lease.check(anew=True)


def test_it_is_given_back_behind_a_renewal_that_was_given_up(lease: Lease, link: Link, bucket: Bucket) -> None:
    bucket.begin()
    bucket.patience = 0.0
    link.losing = 1
    with pytest.raises(BucketUnavailableError):
        lease.check(anew=True)
    assert lease_holder(bucket) == ONE
    lease.release()
    assert lease_holder(bucket) is None
