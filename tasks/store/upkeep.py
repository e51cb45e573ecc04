"""What a store holds, whether it is whole, and what is removed from it."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.store.scoring_store import MODEL, STAGING, ScoringStore, Shelf


@dataclass(frozen=True, slots=True)
class ShelfStats:
    """What a shelf holds: `rows` of `parts` that are `size` bytes, `own` of them in no output folder as well.

    `oldest` and `newest` are the parts' ages in seconds. `set_aside` counts files that nothing reads.
    """

    shelf: str
    model: str
    precision: str
    parts: int
    rows: int
    size: int
    own: int
    oldest: float
    newest: float
    set_aside: int


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A file of the store. `age` is in seconds; `own`: no output folder has it, so that removing it frees its bytes."""

    path: Path
    size: int
    age: float
    own: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """How many parts are whole, and those that were set aside."""

    whole: int
    damaged: tuple[Path, ...]


def store_stats(store: ScoringStore) -> list[ShelfStats]:
    """A line a shelf. Parts may come and go meanwhile."""
    return [_stats(shelf) for shelf in store.shelves()]


def verify_store(store: ScoringStore) -> Verified:
    """Reads every byte of every part. What is damaged is set aside; its rows are scored again when they are asked."""
    with store.used():
        damaged = [part for shelf in store.shelves() for part in shelf.set_damaged_aside()]
        whole = sum(len(shelf.parts()) for shelf in store.shelves())
    return Verified(whole, tuple(damaged))


def choose(
    store: ScoringStore,
    *,
    older_than: float | None = None,
    keep_bytes: int | None = None,
    shelf: str | None = None,
    model: str | None = None,
) -> list[StoredPart]:
    """The parts that all of these are true of, oldest first: `older_than` seconds, of a shelf whose name begins so, of
    a model of this name; and of those the oldest that are more than `keep_bytes`.
    """
    shelves = [
        one
        for one in store.shelves()
        if (shelf is None or one.name.startswith(shelf)) and (model is None or one.model.get("model") == model)
    ]
    parts = [part for one in shelves for part in _parts(one) if older_than is None or part.age > older_than]
    parts.sort(key=lambda part: (-part.age, part.path.name))
    if keep_bytes is None:
        return parts
    kept, chosen = 0, []
    for part in reversed(parts):
        kept += part.size
        if kept > keep_bytes:
            chosen.append(part)
    return chosen[::-1]


def remove(store: ScoringStore, parts: Sequence[StoredPart]) -> None:
    """Removes parts, what was set aside, and what killed runs left half written. Runs that are taking results are
    waited for: that is soon, and no run is in the store while it scores.
    """
    with store.alone():
        for part in parts:
            part.path.unlink(missing_ok=True)
        for left in (store.root / STAGING).iterdir():
            left.unlink()
        for shelf in store.shelves():
            for bad in shelf.folder.glob("*.bad"):
                bad.unlink()
            if not shelf.parts():
                (shelf.folder / MODEL).unlink(missing_ok=True)
                shelf.folder.rmdir()


def _parts(shelf: Shelf) -> list[StoredPart]:
    now = time.time()
    found = []
    for path in shelf.parts():
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        found.append(StoredPart(path, stat.st_size, now - stat.st_mtime, stat.st_nlink == 1))
    return found


def _stats(shelf: Shelf) -> ShelfStats:
    parts, model = _parts(shelf), shelf.model
    ages = [part.age for part in parts]
    return ShelfStats(
        shelf.name,
        str(model.get("model", "unknown")),
        " ".join(str(model[key]) for key in ("dtype", "quantization") if model.get(key, "none") != "none"),
        len(parts),
        sum(map(_rows, parts)),
        sum(part.size for part in parts),
        sum(part.size for part in parts if part.own),
        max(ages, default=0.0),
        min(ages, default=0.0),
        sum(name.endswith(".bad") for name in os.listdir(shelf.folder)),
    )


def _rows(part: StoredPart) -> int:
    """Of its footer; of a part that is gone or damaged none."""
    try:
        return int(pq.read_metadata(part.path).num_rows)
    except (OSError, pa.ArrowException):
        return 0
