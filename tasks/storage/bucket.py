"""Objects below a URL of S3: made once, replaced, read, listed, removed; each tried again while that may help.

Two conditions of a PUT carry all promises: `If-None-Match: *` makes an object if there is none of its name, and
`If-Match` replaces the one that was seen, and no other.
"""

import importlib.util
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from engine.errors import UserError
from tasks.storage.bucket_errors import BucketUnavailableError, lasting, passing

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import S3CredentialProvider

PIECE_BYTES = 8 * 2**20
FIRST_PATIENCE, PATIENCE = 3.0, 120.0
# So many requests of `PIECE_BYTES` each are under way at once, and one ends in so many seconds: a link takes 0.2 MB/s.
PARALLEL, UPLOAD_SECONDS = 4, 180.0
# What is read has no end as long as something comes.
_READ_SECONDS = 86_400.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 8.0

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as it is listed. `modified` is a time of the server's clock, in whole seconds."""

    size: int
    etag: str
    modified: datetime


def _no_guard() -> None:
    """Everybody may."""


class Bucket:
    """`patience` is how long a request is tried again, in seconds, and once at least. A `guard` is called before each
    try of it, and raises where it may not be sent.

    What changes something ends within `request_seconds`. What reads ends where nothing came for so long, and goes on
    for as long as something does.
    """

    def __init__(self, url: str, request_seconds: float) -> None:
        self.url = url
        self.patience = FIRST_PATIENCE
        self._is_begun = False
        self._has_answered = False
        self._is_away = False
        self._hurried = threading.Event()
        store = partial(_store, url, _profile(), connect_seconds=request_seconds / 2)
        self._changes = store(seconds=request_seconds)
        self._uploads = store(seconds=max(request_seconds, UPLOAD_SECONDS))
        self._reads = store(seconds=_READ_SECONDS, silent_seconds=request_seconds)

    def begin(self) -> None:
        """From now on there is work to lose: a request is tried again for minutes."""
        self._is_begun = True
        self._hurried.clear()
        self.patience = PATIENCE

    def hurry(self) -> None:
        """From now on, in waits that go on too, an outage is waited for as briefly as before `begin`.

        Once a request has failed, those behind it are not sent.
        """
        self.patience = FIRST_PATIENCE
        self._hurried.set()

    def end(self) -> None:
        """Nothing is left to lose: as before `begin`."""
        self._is_begun = self._is_away = False
        self._hurried.clear()
        self.patience = FIRST_PATIENCE

    def create(self, name: str, content: bytes, guard: Callable[[], None] = _no_guard) -> str | None:
        """Makes an object that is not there, whose etag is returned. None where another has the name; nothing changes.

        One that is there with this content is the one that was asked for: the answer to an earlier try was lost.
        """

        def once() -> str | None:
            guard()
            try:
                etag: str | None = obstore.put(self._changes, name, content, mode="create")["e_tag"]
            except AlreadyExistsError:
                return None
            return etag

        while (etag := self._tried(once)) is None:
            found = self.get(name)
            if found is not None:  # else two were written at the same time, and neither is there yet
                return found[1].etag if found[0] == content else None
        return etag

    def update(self, name: str, content: bytes, etag: str) -> str | None:
        """Replaces the object that has this etag, and returns the new one's. None where it is another, or none."""

        def once() -> str | None:
            try:
                new: str | None = obstore.put(self._changes, name, content, mode={"e_tag": etag})["e_tag"]
            except (PreconditionError, AlreadyExistsError, FileNotFoundError):
                return None
            return new

        return self._tried(once)

    def put(
        self, name: str, content: Path | bytes, guard: Callable[[], None] = _no_guard, *, may_be_late: bool = False
    ) -> None:
        """Makes the object, or replaces it, in pieces where it is large.

        One that `may_be_late` has `UPLOAD_SECONDS` a piece: it harms nobody who has the lease by then.
        """
        store = self._uploads if may_be_late else self._changes

        def once() -> None:
            guard()
            obstore.put(store, name, content, chunk_size=PIECE_BYTES, max_concurrency=PARALLEL)

        self._tried(once)

    def get(self, name: str) -> tuple[bytes, Listed] | None:
        """None where there is none."""

        def once() -> tuple[bytes, Listed] | None:
            try:
                found = obstore.get(self._reads, name)
                return bytes(found.bytes()), _listed(found.meta)
            except FileNotFoundError:
                return None

        return self._tried(once)

    def read_into(self, file: IO[bytes], name: str, listed: Listed) -> bool:
        """Writes the object, as it was listed, into a file. False where it is there no more, or another."""
        for start in range(0, listed.size, PIECE_BYTES):
            end = min(start + PIECE_BYTES, listed.size)
            piece = self._tried(partial(self._piece, name, listed.etag, start, end))
            if piece is None:
                return False
            file.write(piece)
        return True

    def _piece(self, name: str, etag: str, start: int, end: int) -> bytes | None:
        try:
            found = obstore.get(self._reads, name, options={"range": (start, end), "if_match": etag})
            return bytes(found.bytes())
        except (PreconditionError, FileNotFoundError):
            return None

    def listed(self) -> dict[str, Listed]:
        """All objects, by name below the URL, but for those that stand for a folder."""
        pages = self._tried(lambda: obstore.list(self._reads).collect())
        return {str(one["path"]): _listed(one) for one in pages if not _is_folder(one)}

    def has_any(self, but: str = "") -> bool:
        """Whether there is any object below the URL, but that of this name and those that stand for a folder."""

        def found() -> bool:
            pages = obstore.list(self._reads, chunk_size=4)
            return any(one["path"] != but and not _is_folder(one) for page in pages for one in page)

        return self._tried(found)

    def delete(self, names: Sequence[str], guard: Callable[[], None] = _no_guard) -> None:
        """In this order; those that are not there are passed over."""
        for name in names:
            self._tried(partial(self._delete, name, guard))

    def _delete(self, name: str, guard: Callable[[], None]) -> None:
        guard()
        obstore.delete(self._changes, name)

    def _tried(self, action: Callable[[], Answer]) -> Answer:
        """Raises UserError where another try would not help, or none has helped before `begin`; later on
        BucketUnavailableError.
        """
        began = time.monotonic()
        pause = _FIRST_PAUSE
        for tries in count(1):
            if self._hurried.is_set() and self._is_away:
                raise self._unavailable("does not answer")
            try:
                answer = action()
            except BaseError as problem:
                said = lasting(problem, had_keys=self._has_answered)
                if said is not None:
                    raise UserError(f"output: {self.url}: {said}") from None
                # Patience is asked for anew each time: whoever ends the run meanwhile has less of it.
                if time.monotonic() + pause > began + self.patience and (tries > 1 or self._is_begun):
                    self._is_away = True
                    raise self._unavailable(passing(problem)) from None
            else:
                self._has_answered, self._is_away = True, False
                return answer
            self._wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise AssertionError("unreachable")

    def _wait(self, seconds: float) -> None:
        """Ended by `hurry`."""
        if self._hurried.is_set():
            time.sleep(seconds)
        else:
            self._hurried.wait(seconds)

    def _unavailable(self, how: str) -> Exception:
        server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3"
        said = f"output: {self.url}: {server} {how}"
        if self._is_begun:
            return BucketUnavailableError(f"{said}, for {self.patience:g} s")
        return UserError(f"{said}; see to the network, or say another server in AWS_ENDPOINT_URL")


def _store(
    url: str,
    keys: "S3CredentialProvider | None",
    *,
    connect_seconds: float,
    seconds: float,
    silent_seconds: float | None = None,
) -> S3Store:
    """A request has `seconds`, with all that it sends and reads; and ends where nothing comes for `silent_seconds`."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={
            "allow_http": True,  # whoever says http:// in AWS_ENDPOINT_URL means it
            "timeout": f"{seconds:g}s",
            "connect_timeout": f"{connect_seconds:g}s",
            "read_timeout": f"{silent_seconds or seconds:g}s",
        },
        retry_config={"max_retries": 0},  # what is asked again is asked by `Bucket`
        credential_provider=keys,
    )


def _profile() -> "S3CredentialProvider | None":
    """The credentials of a profile in `~/.aws`, which boto3 reads; None where the environment or a role has them."""
    if "AWS_PROFILE" not in os.environ or "AWS_ACCESS_KEY_ID" in os.environ:
        return None
    if importlib.util.find_spec("boto3") is None:
        raise UserError("output: AWS_PROFILE needs boto3, which is not installed: pip install boto3")
    from obstore.auth.boto3 import Boto3CredentialProvider

    return Boto3CredentialProvider()


def _is_folder(one: "ObjectMeta") -> bool:
    """What a bucket's console makes of a new folder: an object of no bytes, whose name ends in a slash."""
    return one["size"] == 0 and str(one["path"]) in ("", "parts", "manifests", "plan")


def _listed(meta: "ObjectMeta") -> Listed:
    return Listed(meta["size"], meta["e_tag"] or "", meta["last_modified"])
