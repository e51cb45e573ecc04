"""The output folder's layout, and the lock that lets one run at a time change it."""

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from engine.errors import UserError
from engine.file_lock import HeldError, Holder, hold, holder_of
from tasks.storage.commit import fsync, fsync_new, missing_folders, open_private
from tasks.storage.file_mode import make_folder

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """Paths below `root`. Only what lies in `staging` may ever be half written."""

    root: Path

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
        return self.root / "results.duckdb"

    @property
    def progress(self) -> Path:
        """How far the newest run is; see `tasks/storage/run_progress.py`."""
        return self.root / "progress.json"

    @property
    def step_curve(self) -> Path:
        """What the newest run that computed did over its time; see `tasks/storage/step_curve.py`."""
        return self.root / "curve.json"

    @property
    def report(self) -> Path:
        """The newest publication's report; see `tasks/report/page.py`."""
        return self.root / "report.html"

    @property
    def stop_request(self) -> Path:
        """Who holds the folder is asked here to end; see `tasks/storage/stop_request.py`."""
        return self.root / "stop.json"

    def staged(self, name: str) -> Path:
        """A staging name that nobody else uses."""
        return self.staging / f"{uuid.uuid4().hex[:12]}-{name}"

    def check(self) -> None:
        """Raises UserError where the root is something else's."""
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"output: {self.root} is a file; name a folder")
        if self.root.is_dir() and any(self.root.iterdir()) and not (self.root / LOCK_NAME).is_file():
            raise UserError(f"output: {self.root} holds other files; name a new or empty folder")

    def create(self) -> None:
        """Makes the folders. Raises UserError where the root is something else's, or cannot be made."""
        self.check()
        missing = missing_folders(self.root)
        try:
            make_folder(self.root, parents=True)
            with suppress(FileExistsError):
                open_private(self.root / LOCK_NAME).close()
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
        return holder_of(self.root / LOCK_NAME)

    @contextmanager
    def locked(self, wait: float = 0.0) -> Iterator[Holder]:
        """Holds the folder. The kernel frees the lock when its holder dies, however it dies.

        Raises UserError that names the holder where another run has it for more than `wait` seconds.
        """
        with ExitStack() as stack:
            yield self._hold(stack, wait)

    def _hold(self, stack: ExitStack, wait: float) -> Holder:
        deadline = time.monotonic() + wait
        told = ""
        while True:
            try:
                return stack.enter_context(hold(self.root / LOCK_NAME))
            except HeldError as held:
                left = deadline - time.monotonic()
                if left <= 0:
                    waited = f" after {wait:g} s" if wait else ""
                    raise UserError(
                        f"output: {self.root} is in use by {held}{waited}; end it, or wait, as by score --wait SECONDS"
                    ) from None
                if str(held) != told:
                    told = str(held)
                    log.warning("waiting for %s, which has %s", told, self.root)
                time.sleep(min(left, SECONDS_BETWEEN_LOOKS))

    def sweep_staging(self) -> None:
        """Removes what killed runs left half written. Only the lock's holder may call it."""
        for entry in self.staging.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                rmtree(entry)
            else:
                entry.unlink()
