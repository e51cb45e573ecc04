"""An output folder in a bucket. What a run reads and writes is a working copy of it on this machine.

A file is committed once the bucket has it, and the working copy has it behind that: so nothing is lost with the copy,
which is made again, on this machine or another, from what the bucket has.
"""

import fcntl
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from engine.errors import UserError
from engine.failpoint import failpoint
from engine.file_lock import Holder, holder_of
from tasks.storage.bucket import PARALLEL, PIECE_BYTES, Bucket, Listed
from tasks.storage.bucket_errors import BucketUnavailableError, LeaseLostError
from tasks.storage.commit import open_private, sha256_of
from tasks.storage.file_mode import make_folder
from tasks.storage.file_names import LOCK, PLAN, PROGRESS, STOP
from tasks.storage.lease import CLOCK, Lease, lease_holder, open_bucket, take_lease

log = logging.getLogger(__name__)

_OURS = re.compile(r"(?:(?:manifests|parts)/|plan/(?!\.\.?/)[^/]+/)?(?!\.)[^/]+", re.ASCII)
# Written anew under the same name, some of it every few seconds.
_REPLACED = re.compile(r"[^/]+|manifests/run-[^/]+", re.ASCII)
_OF_CONTENT = re.compile(r"parts/[0-9a-f]+-([0-9a-f]{16})\.parquet", re.ASCII)

Wanted = Callable[[str], bool]


def everything(_: str) -> bool:
    return True


def records(name: str) -> bool:
    """What is said of runs, without their results."""
    return name.startswith("manifests/run-") or name in (PROGRESS, STOP)


def _commits(name: str) -> bool:
    """What is never written again."""
    return name.startswith(("manifests/checkpoint-", "manifests/shard-"))


class BucketFolder:
    """`root` is the working copy. Names are paths below it, and below the URL."""

    def __init__(self, url: str, root: Path) -> None:
        self.url = url
        self.root = root
        self._bucket: Bucket | None = None
        self._lease: Lease | None = None
        self._progress = b""
        self._beating = threading.Lock()
        self._replacing = threading.Lock()
        self._is_settled = True

    @property
    def bucket(self) -> Bucket:
        """Asked for when it is needed first: a job is read without it."""
        if self._bucket is None:
            self._bucket = open_bucket(self.url)
        return self._bucket

    @property
    def is_used(self) -> bool:
        """Whether a run has ever had it."""
        return self.bucket.get(LOCK) is not None

    def check(self) -> None:
        """Raises UserError where the bucket cannot be reached, or the objects below the URL are something else's."""
        if not self.is_used and self.bucket.has_any(CLOCK):
            raise UserError(f"output: {self.url} holds other objects; name a new or empty one")

    def holder(self) -> Holder | None:
        """Who runs on it now, here or elsewhere."""
        return lease_holder(self.bucket)

    @contextmanager
    def held(self, holder: Holder, ended: str | None) -> Iterator[None]:
        """Has the folder's lease while the context is open, and the working copy as the bucket is.

        `ended` is the token of a holding that has ended for sure. Raises HeldError where somebody else has it.
        """
        self._lease = lease = take_lease(self.bucket, holder, ended)
        try:
            failpoint("bucket.leased")
            lease.start()
            with self._syncing():
                self._bring(everything, is_holder=True)
            lease.beat = self._beat  # by now the copy's progress is no older than the bucket's
            yield
            self._beat_last()
        finally:
            self._lease = None
            self.bucket.hurry()  # nothing is lost with a lease that is not given back
            try:
                lease.release()
            except (BucketUnavailableError, UserError) as problem:
                log.warning("the lease is not given back, and ends by itself: %s", problem)
            self.bucket.end()

    def look(self, *, records_alone: bool = False) -> None:
        """Brings what the bucket has into the working copy, unless a run on this machine keeps it so."""
        make_folder(self.root, parents=True)
        with self._syncing():
            if holder_of(self.root / LOCK) is None:
                self._bring(records if records_alone else everything)

    def commit(self, staged: Path, name: str) -> bool:
        """Makes the object of a staged file. False where it is there with another content, which the copy then has.

        A part's name is of its content, so that whoever puts it, puts the same.
        """
        if _OF_CONTENT.fullmatch(name):
            self.put(staged, name)
            return True
        failpoint("bucket.commit")
        try:
            made = self.bucket.create(name, staged.read_bytes(), partial(self._guard, anew=True))
        except BucketUnavailableError:
            self._is_settled = False  # it may be there
            raise
        failpoint("bucket.committed")
        if made is None:
            with self._syncing():
                self._bring(everything, drop=False)
        return made is not None

    def settle(self) -> None:
        """Brings the manifests of commits whose answers were lost."""
        if not self._is_settled:
            with self._syncing():
                self._bring(_commits, drop=False)
            self._is_settled = True

    def put(self, file: Path, name: str) -> None:
        """Makes the object, or replaces it. A part, or a plan before its `plan.json`, harms nobody who runs by then."""
        may_be_late = name.startswith(("parts/", "plan/")) and not name.endswith(f"/{PLAN}")
        self.bucket.put(name, file, self._guard, may_be_late=may_be_late)
        failpoint("bucket.put")

    def commit_plan(self, staged: Path, name: str) -> None:
        """A plan is there once its `plan.json` is."""
        for file in sorted(staged.iterdir(), key=lambda file: file.name == PLAN):
            self.put(file, f"{name}/{file.name}")

    def remove(self, name: str) -> None:
        """Removes a file's object, or a plan's, before the working copy does."""
        below = [file.name for file in (self.root / name).iterdir()] if (self.root / name).is_dir() else []
        names = [f"{name}/{file}" for file in sorted(below, key=lambda file: file != PLAN)]
        self.bucket.delete(names or [name], self._guard)
        failpoint("bucket.removed")

    def leave(self, file: Path, name: str) -> None:
        """Makes the object of a file that decides nothing that is committed. Refused where this run lost its lease."""
        guard = self._guard if self._lease is not None else lambda: None
        self.bucket.put(name, file, guard, may_be_late=True)

    def hurry(self) -> None:
        """Somebody ends the run, and does not want to wait for a bucket that is away."""
        if self._bucket is not None:
            self._bucket.hurry()

    def rename(self, old: str, new: Path) -> None:
        """Follows a file, or a plan, that has another name in the working copy, `new`."""
        files = sorted(new.iterdir()) if new.is_dir() else [new]
        for file in files:
            self.put(file, file.relative_to(self.root).as_posix())
        self.bucket.delete([f"{old}/{file.name}" for file in files] if new.is_dir() else [old], self._guard)

    def _guard(self, *, anew: bool = False) -> None:
        if self._lease is None:
            raise LeaseLostError(f"output: {self.url}: nothing is committed by who does not hold the lease")
        self._lease.check(anew=anew)

    def _beat(self) -> None:
        """What others see, and what they ask for. One at a time, so that what is older is not put behind the newest."""
        with self._beating:
            progress = self.root / PROGRESS
            if progress.is_file() and (content := progress.read_bytes()) != self._progress:
                self.bucket.put(PROGRESS, content, self._guard)
                self._progress = content
            asked = self.bucket.get(STOP)
            if asked is not None:
                self._replace(STOP, asked[0])

    def _beat_last(self) -> None:
        """All that it tells is committed."""
        try:
            self._beat()
        except (BucketUnavailableError, LeaseLostError, UserError, OSError) as problem:
            log.warning("the last progress is not told: %s", problem)

    @contextmanager
    def _syncing(self) -> Iterator[None]:
        """One at a time brings files into the working copy."""
        with (self.root / ".sync").open("ab") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            yield

    def _bring(self, wanted: Wanted, *, is_holder: bool = False, drop: bool = True) -> None:
        """Makes the copy what the bucket has of one moment: where an object went meanwhile, all are listed again.

        What is written anew comes as it is by then, so that a run elsewhere, which writes all the time, is followed.
        """
        same: dict[str, str] = {}  # etags of what the copy is known to have: no file is hashed twice
        whole = False
        while not whole:
            there = {name: one for name, one in self.bucket.listed().items() if _OURS.fullmatch(name) and wanted(name)}
            half = _half_plans(there)
            if is_holder:
                self.bucket.delete(half, self._guard)
            for name in half:
                del there[name]
            if drop:
                self._drop(wanted, there)
            stale = [
                name
                for name, one in there.items()
                if same.get(name) != one.etag and not _is_same(self.root / name, name, one)
            ]
            fetched = self._fetch_all({name: there[name] for name in stale})
            same = {name: one.etag for name, one in there.items() if fetched.get(name, True)}
            whole = all(fetched.values())

    def _fetch_all(self, wanted: Mapping[str, Listed]) -> dict[str, bool]:
        """What `_fetch` says of each, side by side."""
        with ThreadPoolExecutor(PARALLEL) as pool:
            try:
                return dict(zip(wanted, pool.map(self._fetch, wanted, wanted.values()), strict=True))
            except BaseException as problem:
                if not isinstance(problem, Exception):
                    self.hurry()  # or the pool would wait for those under way as they wait for the bucket
                raise

    def _fetch(self, name: str, listed: Listed) -> bool:
        """False where the object went, or is another than was listed, though none takes its place."""
        if _REPLACED.fullmatch(name):
            newest = self.bucket.get(name)
            if newest is None:
                (self.root / name).unlink(missing_ok=True)
                return True
            return self._replace(name, newest[0])
        return self._write(name, lambda file: self.bucket.read_into(file, name, listed))

    def _replace(self, name: str, content: bytes) -> bool:
        """As `_write`, for what a beat may bring while others bring it too."""
        with self._replacing:
            return self._write(name, lambda file: bool(file.write(content)))

    def _write(self, name: str, fill: Callable[..., bool]) -> bool:
        """Puts a file of the copy in place as a whole, if it can be filled."""
        final = self.root / name
        make_folder(final.parent, parents=True)
        staged = final.with_name(f".{final.name}.part")
        staged.unlink(missing_ok=True)
        with open_private(staged) as file:
            filled = fill(file)
        if filled:
            staged.replace(final)
        else:
            staged.unlink()
        return filled

    def _drop(self, wanted: Wanted, there: Mapping[str, Listed]) -> None:
        """Removes files of the copy that the bucket does not have."""
        for path in sorted(self.root.rglob("*"), reverse=True):
            name = path.relative_to(self.root).as_posix()
            if path.is_dir() and not path.is_symlink():
                if name.startswith("plan/") and not any(path.iterdir()):
                    path.rmdir()
            elif name not in there and not name.startswith(("staging/", ".")) and wanted(name):
                path.unlink()


def _half_plans(there: Mapping[str, Listed]) -> list[str]:
    """Objects of plans whose `plan.json` never came, or went first."""
    plans = {name.rpartition("/")[0] for name in there if name.startswith("plan/")}
    half = {plan for plan in plans if f"{plan}/{PLAN}" not in there and not plan.endswith(".bad")}
    return [name for name in there if name.rpartition("/")[0] in half]


def _is_same(path: Path, name: str, listed: Listed) -> bool:
    """Whether a file of the copy has the object's content. What nobody can tell is fetched again."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != listed.size:
        return False
    if match := _OF_CONTENT.fullmatch(name):
        return sha256_of(path).startswith(match[1])
    return listed.etag.strip('"') in _etags(path)


def _etags(path: Path) -> tuple[str, str]:
    """What S3 calls a file that was put at once, or in pieces of `PIECE_BYTES`, where it does not encrypt by a key."""
    whole, pieces = hashlib.md5(usedforsecurity=False), []
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            whole.update(piece)
            pieces.append(hashlib.md5(piece, usedforsecurity=False).digest())
    joined = hashlib.md5(b"".join(pieces), usedforsecurity=False).hexdigest()
    return whole.hexdigest(), f"{joined}-{len(pieces)}"
