"""Files that appear whole or not at all: staging name, fsync, link without overwriting, fsync of the folder."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import duckdb

from engine.errors import UserError
from engine.failpoint import failpoint
from tasks.storage.file_mode import file_mode

_DISK_FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Says a full disk in one line, whether Python or DuckDB met it; every other error passes."""
    try:
        yield
    except (OSError, duckdb.Error) as problem:
        # DuckDB's error has no number, but the system's words.
        said = next((words for words in _DISK_FULL if words in str(problem)), None)
        if said is None:
            raise
        raise UserError(f"{folder}: no space left ({said}); free some and run the same command again") from None


def open_private(path: Path) -> BinaryIO:
    """A new file of `file_mode`: one that its owner alone can read, unless the owner says otherwise."""
    mode = file_mode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    os.fchmod(descriptor, mode)  # whatever the process's umask took away
    return open(descriptor, "wb")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Makes a file's bytes, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def missing_folders(path: Path) -> list[Path]:
    """The folder and those above it that are not there yet."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def fsync_new(folder: Path, missing: Sequence[Path]) -> None:
    """Makes a folder's entries, and its own name with those of `missing` ones that were made, survive a power cut."""
    for one in (folder, *(made.parent for made in missing)):
        fsync(one)


def commit_file(staged: Path, final: Path) -> bool:
    """Gives a staged file its final name. False, and nothing changed, where the name is taken."""
    fsync(staged)
    failpoint("commit.synced")
    try:
        os.link(staged, final)
    except FileExistsError:
        return False
    finally:
        staged.unlink()
    failpoint("commit.linked")
    fsync(final.parent)
    return True


def replace_file(staged: Path, final: Path) -> None:
    """Like `commit_file`, over whatever is there."""
    fsync(staged)
    failpoint("replace.synced")
    os.replace(staged, final)
    failpoint("replace.renamed")
    fsync(final.parent)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A name, in a folder of its own beside `target`, for the file that takes its place where the context ends well.

    Until then `target` is what it was. It keeps who may read it, and what is written has `file_mode` where none was
    there; a link goes on leading to the file. Raises OSError where the folder or the file may not be written.
    """
    place = target.resolve()
    mode = file_mode()
    if place.exists():
        os.close(os.open(place, os.O_WRONLY | os.O_NONBLOCK))  # who may not write the file does not replace it either
        mode = stat.S_IMODE(place.stat().st_mode)
    with TemporaryDirectory(prefix=".trunkline-", dir=place.parent) as folder:
        staged = Path(folder) / place.name
        yield staged
        staged.chmod(mode)
        replace_file(staged, place)
