"""A disk that loses its power: what was not synced may be gone, file by file and entry by entry.

POSIX promises that a file's bytes are there after its fsync, and a folder's entries after that of the folder, and
nothing else: an unsynced file may be empty, or end anywhere, or hold zeros; an unsynced entry, new, renamed or removed,
may be as it is or as it was (Pillai et al., All file systems are not created equal, OSDI 2014, section 2).
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

# Calls of `os` that change a folder, or make something last. pathlib and shutil go through them.
CALLS = ("link", "rename", "replace", "unlink", "remove", "rmdir", "mkdir", "fsync")

Fate = Literal["lost", "kept", "drawn"]
FATES: tuple[Fate, ...] = ("lost", "kept", "drawn")


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it is at a moment: `stamp` changes with its bytes."""

    node: int
    stamp: tuple[int, int]


# Of a folder: a file's bytes have a stamp, a folder below it is its node alone.
Entries = dict[str, Seen | int]


@dataclass(frozen=True, slots=True)
class Moment:
    """Between two calls. `folders` by node, as whoever asks sees them; `synced` likewise as they are on the disk for
    certain, with the bytes of `files` by node.
    """

    call: str
    folders: dict[int, Entries]
    synced: dict[int, Entries]
    files: dict[int, tuple[Seen, bytes]]
    promised: frozenset[str]


@dataclass(slots=True)
class Disk:
    """Of all that is below `root`, which is there and empty for certain. `moments` are those before each call."""

    root: Path
    moments: list[Moment] = field(default_factory=list)
    promised: set[str] = field(default_factory=set)
    _synced: dict[int, Entries] = field(default_factory=dict)
    _files: dict[int, tuple[Seen, bytes]] = field(default_factory=dict)

    @contextmanager
    def recording(self) -> Iterator[None]:
        self._synced[self.root.stat().st_ino] = {}
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, partial(self._call, name, getattr(os, name)))
            yield
        self._look("the end")

    def _call(self, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self._look(name)
        made = call(*arguments, **named)
        if name == "fsync":
            self._sync(arguments[0])
        return made

    def _sync(self, descriptor: int) -> None:
        node = os.fstat(descriptor).st_ino
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            self._synced[node] = _entries(path)
        elif path.is_file():
            self._files[node] = _seen(path), path.read_bytes()

    def _look(self, call: str) -> None:
        folders = {Path(at).stat().st_ino: _entries(Path(at)) for at, _, _ in os.walk(self.root)}
        moment = Moment(call, folders, dict(self._synced), dict(self._files), frozenset(self.promised))
        if not self.moments or self.moments[-1].folders != folders or self.moments[-1].synced != moment.synced:
            self.moments.append(moment)


def _entries(folder: Path) -> Entries:
    return {entry.name: entry.inode() if entry.is_dir() else _seen(Path(entry)) for entry in os.scandir(folder)}


def _seen(path: Path) -> Seen:
    stat = path.lstat()
    return Seen(stat.st_ino, (stat.st_size, stat.st_mtime_ns))


def restore(moment: Moment, node: int, target: Path, fate: Fate, draw: random.Random) -> None:
    """Makes `target` what the folder `node` may be after the power was lost at `moment`.

    `fate` is that of entries that were not synced; bytes that were not are torn in one of all ways.
    """
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    now, before = moment.folders.get(node, {}), moment.synced.get(node, {})
    for name in sorted(now.keys() | before.keys()):
        keeps = fate == "kept" or (fate == "drawn" and draw.random() < 0.5)
        entry = (now if keeps or now.get(name) == before.get(name) else before).get(name)
        if isinstance(entry, int):
            restore(moment, entry, target / name, fate, draw)
        elif entry is not None:
            (target / name).write_bytes(_bytes(moment, entry, draw))


def _bytes(moment: Moment, seen: Seen, draw: random.Random) -> bytes:
    synced = moment.files.get(seen.node)
    if synced is not None and synced[0] == seen:
        return synced[1]
    size = seen.stamp[0]
    torn = [b"", bytes(size)]
    if synced is not None:
        torn += [synced[1], synced[1][: len(synced[1]) // 2]]
    return draw.choice(torn)
