"""The output folder's layout, and the lock that lets one run at a time change it."""

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.file_lock import HeldError, Holder, hold, holder_of, last_holder
from tasks.storage.commit import commit_file, fsync, fsync_new, missing_folders, open_private, replace_file
from tasks.storage.damage import set_aside
from tasks.storage.file_mode import make_folder
from tasks.storage.file_names import CURVE, DATABASE, LOCK, PROGRESS, REPORT, STOP

if TYPE_CHECKING:
    from tasks.storage.bucket_folder import BucketFolder

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5
# Of a bucket, each of whose looks is some requests.
SECONDS_BETWEEN_REQUESTS = 3.0


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """Paths below `root`. Only what lies in `staging` may ever be half written.

    With a `bucket`, `root` is a working copy of what is there: whatever is committed or removed is so in the bucket
    first.
    """

    root: Path
    bucket: "BucketFolder | None" = None

    def __str__(self) -> str:
        """Its name for people, by which it is found again."""
        return str(self.root) if self.bucket is None else self.bucket.url

    @property
    def is_used(self) -> bool:
        """Whether a run has ever had it."""
        return (self.root / LOCK).is_file() if self.bucket is None else self.bucket.is_used

    @property
    def plans(self) -> Path:
        return self.root / "plan"

    @property
    def parts(self) -> Path:
        return self.root / "parts"

    @property
    def manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    @property
    def database(self) -> Path:
        return self.root / DATABASE

    @property
    def progress(self) -> Path:
        """How far the newest run is; see `tasks/storage/run_progress.py`."""
        return self.root / PROGRESS

    @property
    def step_curve(self) -> Path:
        """What the newest run that computed did over its time; see `tasks/storage/step_curve.py`."""
        return self.root / CURVE

    @property
    def report(self) -> Path:
        """The newest publication's report; see `tasks/report/page.py`."""
        return self.root / REPORT

    @property
    def stop_request(self) -> Path:
        """Who holds the folder is asked here to end; see `tasks/storage/stop_request.py`."""
        return self.root / STOP

    def staged(self, name: str) -> Path:
        """A staging name that nobody else uses."""
        return self.staging / f"{uuid.uuid4().hex[:12]}-{name}"

    def commit(self, staged: Path, final: Path) -> bool:
        """Gives a staged file its final name. False, and nothing changed, where the name is taken."""
        if self.bucket is not None and not self.bucket.commit(staged, self._name(final)):
            staged.unlink()
            return False
        return commit_file(staged, final)

    def settle(self) -> None:
        """Brings what an earlier `commit` made in the bucket and never heard so, before anybody makes it again."""
        if self.bucket is not None:
            self.bucket.settle()

    def replace(self, staged: Path, final: Path) -> None:
        """Like `commit`, over whatever is there."""
        if self.bucket is not None:
            self.bucket.put(staged, self._name(final))
        replace_file(staged, final)

    def commit_plan(self, staged: Path, final: Path) -> None:
        """Gives a staged folder its final name, which is a new one."""
        if self.bucket is not None:
            self.bucket.commit_plan(staged, self._name(final))
        staged.rename(final)

    def remove(self, path: Path) -> None:
        """Removes a file, or a plan's folder. Only the lock's holder may call it, as all that changes what is there."""
        if self.bucket is not None:
            self.bucket.remove(self._name(path))
        if path.is_dir() and not path.is_symlink():
            rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def set_aside(self, path: Path) -> None:
        """Renames whatever is there to `*.bad`, so that it can be looked at and nothing reads it."""
        bad = set_aside(path)
        if self.bucket is not None:
            self.bucket.rename(self._name(path), bad)

    def tell(self, path: Path) -> None:
        """A file that decides nothing was written anew, whose readers may be elsewhere."""
        if self.bucket is not None:
            self.bucket.leave(path, self._name(path))

    def hurry(self) -> None:
        """Somebody ends the run: what is left to do is done at once, or not."""
        if self.bucket is not None:
            self.bucket.hurry()

    def look(self, *, records_alone: bool = False) -> "OutputFolder":
        """Itself, with what is in the bucket now on this machine: all of it, or what is said of runs alone."""
        if self.bucket is not None:
            self.bucket.look(records_alone=records_alone)
        return self

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def check(self) -> None:
        """Raises UserError where the root is something else's."""
        if self.bucket is not None:
            return self.bucket.check()
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"output: {self.root} is a file; name a folder")
        if self.root.is_dir() and any(self.root.iterdir()) and not (self.root / LOCK).is_file():
            raise UserError(f"output: {self.root} holds other files; name a new or empty folder")
        return None

    def create(self) -> None:
        """Makes the folders. Raises UserError where the root is something else's, or cannot be made."""
        self.check()
        missing = missing_folders(self.root)
        try:
            make_folder(self.root, parents=True)
            with suppress(FileExistsError):
                open_private(self.root / LOCK).close()
            fsync_new(self.root, missing)  # the lock says whose the folder is, so that it is there before all else
            for folder in self._folders:
                make_folder(folder)
            fsync(self.root)
        except OSError as problem:
            raise UserError(f"output: {self.root} cannot be made ({problem.strerror})") from None
        self.refuse_links()

    def refuse_links(self) -> None:
        """Raises UserError where one of the folders is a link: what is read or written below it would lie elsewhere."""
        linked = next((folder for folder in self._folders if folder.is_symlink()), None)
        if linked is not None:
            raise UserError(f"output: {linked} is a link; an output folder holds its own files")

    @property
    def _folders(self) -> tuple[Path, ...]:
        return self.plans, self.parts, self.manifests, self.staging

    def holder(self) -> Holder | None:
        """Who runs on the folder now, asked without being in a run's way."""
        return holder_of(self.root / LOCK) or (None if self.bucket is None else self.bucket.holder())

    @contextmanager
    def locked(self, wait: float = 0.0) -> Iterator[Holder]:
        """Holds the folder. The kernel frees the lock when its holder dies, however it dies; a bucket's lease ends.

        Raises UserError that names the holder where another run has it for more than `wait` seconds.
        """
        with ExitStack() as stack:
            yield self._hold(stack, wait)

    def _hold(self, stack: ExitStack, wait: float) -> Holder:
        deadline = time.monotonic() + wait
        told = ""
        while True:
            try:
                return stack.enter_context(self._held())
            except HeldError as held:
                left = deadline - time.monotonic()
                if left <= 0:
                    waited = f" after {wait:g} s" if wait else ""
                    raise UserError(
                        f"output: {self} is in use by {held}{waited}; end it, or wait, as by score --wait SECONDS"
                    ) from None
                holder = str(held).partition(",")[0]  # how long its lease lasts is another time each time
                if holder != told:
                    told = holder
                    log.warning("waiting for %s, which has %s", told, self)
                time.sleep(min(left, SECONDS_BETWEEN_LOOKS if self.bucket is None else SECONDS_BETWEEN_REQUESTS))

    @contextmanager
    def _held(self) -> Iterator[Holder]:
        """Raises HeldError, at once."""
        # Of the lock as it was: whoever wrote it here is dead, or has ended, once this process has it. Whether another
        # machine's holder has, that shares the file, nobody knows: locks of some file systems are of one machine.
        ended = last_holder(self.root / LOCK)
        with hold(self.root / LOCK) as holder:
            if self.bucket is None:
                yield holder
                return
            with self.bucket.held(holder, ended.token if ended is not None and ended.host == holder.host else None):
                yield holder

    def sweep_staging(self) -> None:
        """Removes what killed runs left half written. Only the lock's holder may call it."""
        for entry in self.staging.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                rmtree(entry)
            else:
                entry.unlink()
