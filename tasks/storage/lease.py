"""The lock of an output folder in a bucket: an object that names its holder, who writes it anew while the run lives.

No kernel frees it, so that it is a lease: who has not renewed it for `TRUNKLINE_LEASE_SECONDS` has lost it to whoever
asks next. All of its changes are conditional on the one before. How old it is, is said by the server's clock alone; how
long its holder may still rely on it, by the holder's own, which goes on while a machine sleeps.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from engine.errors import UserError
from engine.failpoint import failpoint
from engine.file_lock import HeldError, Holder
from tasks.storage.bucket import Bucket, Listed
from tasks.storage.bucket_errors import BucketUnavailableError, LeaseLostError
from tasks.storage.file_names import LOCK

log = logging.getLogger(__name__)

CLOCK = ".clock"
VARIABLE = "TRUNKLINE_LEASE_SECONDS"
_SECONDS = 60.0
# Of a lease's seconds: a commit begins within so many after a renewal began, a request takes so long, a renewal comes
# so often. A commit that began in time ends in time: 1/2 + 1/3 < 1.
_COMMIT, _REQUEST, _RENEW = 1 / 2, 1 / 3, 1 / 12
# So many renewals are tried whose answers come too late to rely on, one behind the other.
_TRIES = 3


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What the object says. It is written anew with another `renewals`, so that each one's etag is its own."""

    pid: int
    host: str
    token: str
    seconds: float
    renewals: int
    is_held: bool

    @property
    def holder(self) -> Holder:
        return Holder(self.pid, self.host, self.token)

    def seconds_left(self, written: Listed, now: datetime) -> float:
        """Until others may take it, if it is not renewed; times are whole seconds."""
        return self.seconds + 1 - (now - written.modified).total_seconds() if self.is_held else 0.0


class Lease:
    """One holding of the lock, renewed by a thread from `start` until `release`.

    Behind each renewal `beat` is called, once there is one.
    """

    def __init__(self, bucket: Bucket, record: LeaseRecord, etag: str, taken: float) -> None:
        self._bucket, self._record, self._etag = bucket, record, etag
        self._renewed = taken
        self._lost: LeaseLostError | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self.beat: Callable[[], None] | None = None

    def start(self) -> None:
        self._bucket.begin()
        self._thread.start()

    def check(self, *, anew: bool = False) -> None:
        """Raises LeaseLostError where this holding may commit nothing more; BucketUnavailableError: nobody knows.

        `anew` asks the bucket, as behind that alone a thing can be promised to be the holder's own; else a renewal that
        is young enough says so.
        """
        with self._lock:
            if self._lost is None and (anew or not self._is_young()):
                self._renew()
            if self._lost is not None:
                raise self._lost

    def release(self) -> None:
        """Whoever asks next has the lock at once."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            for _ in range(_TRIES):
                if self._lost is None and self._record.is_held:
                    self._write(is_held=False)

    def _keep(self) -> None:
        while not self._ended.wait(self._record.seconds * _RENEW):
            try:
                with self._lock:
                    self._renew()
                if self._lost is not None:
                    return  # whoever commits next says so
                if self.beat is not None:
                    self.beat()
            except LeaseLostError:
                return
            except (BucketUnavailableError, UserError, OSError) as problem:
                log.warning("the lease is not renewed: %s", problem)

    def _renew(self) -> None:
        """Writes until the lease is lost, or young enough for a commit, with the lock held.

        Raises BucketUnavailableError where answers come too late for that.
        """
        for _ in range(_TRIES):
            self._write(is_held=True)
            if self._lost is not None or self._is_young():
                return
        raise BucketUnavailableError(f"output: {self._bucket.url}: answers come too late to hold the lease")

    def _is_young(self) -> bool:
        return _now() - self._renewed <= self._record.seconds * _COMMIT

    def _write(self, *, is_held: bool) -> None:
        """Writes the object in the place of the one that this holding wrote last; else somebody else has taken it.

        One that is found to be of an earlier try, whose answer was lost, is as old as that may be: `_renewed` stays.
        """
        record = _next(self._record, is_held=is_held)
        began = _now()
        etag = self._bucket.update(LOCK, _encoded(record), self._etag)
        if etag is not None:
            self._record, self._etag, self._renewed = record, etag, began
            return
        found = self._bucket.get(LOCK)
        theirs = None if found is None else _decoded(found[0])
        if found is None or theirs is None or theirs.token != record.token:
            whose = "" if theirs is None else f": {theirs.holder} has it"
            self._lost = LeaseLostError(f"output: {self._bucket.url}: the lease was lost{whose}")
            return
        self._record, self._etag = theirs, found[1].etag


def open_bucket(url: str) -> Bucket:
    """With requests that end in time for a lease. Raises UserError for a setting of it that is none."""
    return Bucket(url, lease_seconds() * _REQUEST)


def take_lease(bucket: Bucket, holder: Holder, ended: str | None) -> Lease:
    """Raises HeldError where another may have it, and UserError for a server that does not know conditional writes.

    `ended` is the token of a holding that has ended for sure, such as one of a process on this machine that is dead.
    """
    now = _server_time(bucket)
    failpoint("bucket.clock")
    record = LeaseRecord(holder.pid, holder.host, holder.token, lease_seconds(), 0, is_held=True)
    began = _now()
    etag = bucket.create(LOCK, _encoded(record))
    if etag is None:
        found = bucket.get(LOCK)
        theirs = None if found is None else _decoded(found[0])
        if found is None or theirs is None:
            raise UserError(f"output: {bucket.url}: {LOCK} there is no lock of ours; name another folder")
        left = theirs.seconds_left(found[1], now)
        if left > 0 and theirs.token != ended:
            raise HeldError(f"{theirs.holder}, whose lease ends in {max(left, 1):.0f} s unless it renews it")
        began = _now()
        etag = bucket.update(LOCK, _encoded(record), found[1].etag)
    if etag is None:
        etag = _own_etag(bucket, record)
    return Lease(bucket, record, etag, began)


def _own_etag(bucket: Bucket, record: LeaseRecord) -> str:
    """Of the object that was to be written, where an earlier try has written it, whose answer was lost.

    Raises HeldError where somebody else has.
    """
    found = bucket.get(LOCK)
    theirs = None if found is None else _decoded(found[0])
    if found is None or theirs != record:
        who = "another process" if theirs is None else str(theirs.holder)
        raise HeldError(f"{who}, which was faster")
    return found[1].etag


def lease_holder(bucket: Bucket) -> Holder | None:
    """Who has the lock, as far as somebody can tell who may not write there: by this machine's clock."""
    found = bucket.get(LOCK)
    record = None if found is None else _decoded(found[0])
    if found is None or record is None or record.seconds_left(found[1], datetime.now(UTC)) <= 0:
        return None
    return record.holder


def lease_seconds() -> float:
    """Raises UserError for a setting that is no number, or too small to be renewed in time."""
    said = os.environ.get(VARIABLE) or str(_SECONDS)
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86_400:
        raise UserError(f"{VARIABLE}: {said!r:.40} is not a number of seconds from 1 to 86400")
    return seconds


def _server_time(bucket: Bucket) -> datetime:
    """What the server's clock says, by an object written just now; by which it also shows that it heeds conditions."""
    bucket.put(CLOCK, os.urandom(8).hex().encode())
    made = bucket.create(CLOCK, b"none")
    found = bucket.get(CLOCK)
    if made is not None or found is None or bucket.update(CLOCK, b"none", '"0"') is not None:
        raise UserError(
            f"output: {bucket.url}: the server does not heed If-None-Match and If-Match, without which two runs could"
            " mix; take one that does, or a folder"
        )
    return found[1].modified


def _now() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _next(record: LeaseRecord, *, is_held: bool) -> LeaseRecord:
    return LeaseRecord(record.pid, record.host, record.token, record.seconds, record.renewals + 1, is_held)


def _encoded(record: LeaseRecord) -> bytes:
    return json.dumps(asdict(record)).encode() + b"\n"


def _decoded(content: bytes) -> LeaseRecord | None:
    try:
        return LeaseRecord(**json.loads(content))
    except (ValueError, TypeError):
        return None
