"""Objects below a URL of S3: made once, replaced, read, listed, removed; each tried again while that may help.

Two conditions of a PUT carry all promises: `If-None-Match: *` makes an object if there is none of its name, and
`If-Match` replaces the one that was seen, and no other.
"""

import importlib.util
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
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
    """`patience` is how long a request is tried again, in seconds. A `guard` is called before each try of it, and
    raises where it may not be sent.
    """

    def __init__(self, url: str, request_seconds: float) -> None:
        self.url = url
        self.patience = FIRST_PATIENCE
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            client_options={
                "allow_http": True,  # whoever says http:// in AWS_ENDPOINT_URL means it
                "timeout": f"{request_seconds:g}s",
                "connect_timeout": f"{request_seconds / 2:g}s",
            },
            retry_config={"max_retries": 0},  # what is asked again is asked by `_tried`
            credential_provider=_profile(),
        )

    def create(self, name: str, content: bytes, guard: Callable[[], None] = _no_guard) -> str | None:
        """Makes an object that is not there, whose etag is returned. None where another has the name; nothing changes.

        One that is there with this content is the one that was asked for: the answer to an earlier try was lost.
        """

        def once() -> str | None:
            guard()
            try:
                etag: str | None = obstore.put(self._store, name, content, mode="create")["e_tag"]
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
                new: str | None = obstore.put(self._store, name, content, mode={"e_tag": etag})["e_tag"]
            except (PreconditionError, AlreadyExistsError, FileNotFoundError):
                return None
            return new

        return self._tried(once)

    def put(self, name: str, content: Path | bytes, guard: Callable[[], None] = _no_guard) -> None:
        """Makes the object, or replaces it, in pieces where it is large."""

        def once() -> None:
            guard()
            obstore.put(self._store, name, content, chunk_size=PIECE_BYTES)

        self._tried(once)

    def get(self, name: str) -> tuple[bytes, Listed] | None:
        """None where there is none."""

        def once() -> tuple[bytes, Listed] | None:
            try:
                found = obstore.get(self._store, name)
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
            found = obstore.get(self._store, name, options={"range": (start, end), "if_match": etag})
            return bytes(found.bytes())
        except (PreconditionError, FileNotFoundError):
            return None

    def listed(self) -> dict[str, Listed]:
        """All objects, by name below the URL, but for those that stand for a folder."""
        pages = self._tried(lambda: obstore.list(self._store).collect())
        return {str(one["path"]): _listed(one) for one in pages if not _is_folder(one)}

    def has_any(self, but: str = "") -> bool:
        """Whether there is any object below the URL, but that of this name and those that stand for a folder."""

        def found() -> bool:
            pages = obstore.list(self._store, chunk_size=4)
            return any(one["path"] != but and not _is_folder(one) for page in pages for one in page)

        return self._tried(found)

    def delete(self, names: Sequence[str], guard: Callable[[], None] = _no_guard) -> None:
        """In this order; those that are not there are passed over."""
        for name in names:
            self._tried(partial(self._delete, name, guard))

    def _delete(self, name: str, guard: Callable[[], None]) -> None:
        guard()
        obstore.delete(self._store, name)

    def _tried(self, action: Callable[[], Answer]) -> Answer:
        """Raises UserError where another try would not help, or none has helped since the URL was named; later on
        BucketUnavailableError.
        """
        deadline = time.monotonic() + self.patience
        pause = _FIRST_PAUSE
        while True:
            try:
                return action()
            except BaseError as problem:
                said = lasting(problem)
                if said is not None:
                    raise UserError(f"output: {self.url}: {said}") from None
                if time.monotonic() + pause > deadline:
                    raise self._unavailable(problem) from None
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _unavailable(self, problem: BaseError) -> Exception:
        server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3"
        said = f"output: {self.url}: {server} {passing(problem)}"
        if self.patience == PATIENCE:
            return BucketUnavailableError(f"{said}, for {PATIENCE:g} s")
        return UserError(f"{said}; see to the network, or say another server in AWS_ENDPOINT_URL")


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
