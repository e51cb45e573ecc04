"""The scoring store's folder: a part is named by the sha256 of its bytes, below a folder for all that decides alike.

```text
store/
  .trunkline-store        the lock, by which the folder is known as a store too
  staging/                half-written files
  <digest>/               of a model, its precision, and the version of the engine's arithmetic
    model.json            what the digest is of, for people
    <sha256>.parquet      results
```

A part's name is all that there is to a commit: no manifest lists it, and whoever reads it can tell whether its bytes
are those that were committed. A part is a hard link of an output folder's where that is possible, so that it takes no
room while the folder is there.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from engine.errors import UserError
from tasks.storage.commit import commit_file, fsync, fsync_new, missing_folders, open_private, sha256_of
from tasks.storage.damage import DamagedError, set_aside, tell
from tasks.storage.file_mode import make_folder
from tasks.storage.run import Run
from tasks.storage.stored_json import read_json, stage_json

MARK, STAGING, MODEL = ".trunkline-store", "staging", "model.json"

_PART = re.compile(r"[0-9a-f]{64}\.parquet", re.ASCII)
_SHELF = re.compile(r"[0-9a-f]{32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Shelf:
    """The store's parts that hold answers of one model in one precision. Files come and go while it is looked at."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def model(self) -> Mapping[str, object]:
        """What the results are of; nothing where the file that says so is damaged."""
        try:
            return read_json(self.folder / MODEL)
        except DamagedError:
            return {}

    def parts(self) -> list[Path]:
        """By name."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return [self.folder / name for name in sorted(names) if _PART.fullmatch(name)]

    def set_damaged_aside(self) -> list[Path]:
        """The parts whose bytes are not those that were committed: now `*.bad`, which nothing reads."""
        return [part for part in self.parts() if not is_whole(part)]


def is_whole(part: Path) -> bool:
    """Whether a part's bytes are those that were committed; else it is set aside, if nobody was faster."""
    try:
        if not part.is_symlink() and sha256_of(part) == part.stem:
            return True
        tell(DamagedError(part, "is damaged: its bytes are not those that were committed"), "its rows are scored again")
        set_aside(part)
    except FileNotFoundError:
        pass
    return False


@dataclass(frozen=True, slots=True)
class ScoringStore:
    """Whoever reads or adds is in `used`, for as long as that takes and not while anything is scored; whoever removes
    is in `alone`.
    """

    root: Path

    def check(self) -> None:
        """Raises UserError where the root is something else's."""
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"store: {self.root} is a file; name a folder")
        if self.root.is_dir() and any(self.root.iterdir()) and not self.exists:
            raise UserError(f"store: {self.root} holds other files; name a new or empty folder")

    def create(self) -> None:
        """Raises UserError where the root is something else's, or cannot be made."""
        self.check()
        missing = missing_folders(self.root)
        try:
            make_folder(self.root, parents=True)
            (self.root / MARK).touch(mode=0o600)
            fsync_new(self.root, missing)  # the mark says that it is a store, so that it is there before all else
            make_folder(self.root / STAGING)
        except OSError as problem:
            raise UserError(f"store: {self.root} cannot be made ({problem.strerror})") from None

    @property
    def exists(self) -> bool:
        return (self.root / MARK).is_file()

    def shelf(self, run: Run) -> Shelf:
        """The one for what the run's requests have in common."""
        return Shelf(self.root / hashlib.blake2b(json.dumps(run.decisive).encode(), digest_size=16).hexdigest())

    def shelves(self) -> list[Shelf]:
        return [Shelf(self.root / name) for name in sorted(os.listdir(self.root)) if _SHELF.fullmatch(name)]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Nothing is removed while the context is open. Others use it at once."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else uses the store while the context is open; waits until they are done, which is soon."""
        with self._locked(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """The kernel frees it when its holder dies, however it dies."""
        with open(os.open(self.root / MARK, os.O_RDWR | os.O_CREAT, 0o600)) as file:
            fcntl.flock(file, how)
            yield

    def add(self, run: Run, part: Path, digest: str) -> None:
        """Adds a committed file of results, whose sha256 is `digest`. Nothing changes where it is there already."""
        shelf = self._shelf_made(run)
        final = shelf.folder / f"{digest}.parquet"
        if final.exists():
            return
        staged = self.staged()
        try:
            os.link(part, staged)
        except OSError:  # another disk, or another's file
            with part.open("rb") as source, open_private(staged) as copy:
                shutil.copyfileobj(source, copy)
        commit_file(staged, final)

    def staged(self) -> Path:
        """A name that nobody else uses."""
        return self.root / STAGING / uuid4().hex

    def _shelf_made(self, run: Run) -> Shelf:
        shelf = self.shelf(run)
        if not (shelf.folder / MODEL).exists():
            make_folder(shelf.folder)
            fsync(self.root)
            content = {
                "model": run.model.name,
                "fingerprint": run.model.fingerprint,
                "dtype": run.device.dtype,
                "quantization": run.config.quantization,
                "decisive": run.decisive,
            }
            commit_file(stage_json(self.staged(), content), shelf.folder / MODEL)
        return shelf
