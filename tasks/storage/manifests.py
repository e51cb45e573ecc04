"""The manifests decide what is committed: a JSON file a part, which names the part and its sha256.

A shard that is done has one manifest. Before, each of its checkpoints has one, under a name of its own: they are
superseded, and no reader's any more, in the moment in which the shard's manifest appears. Their files stay until no
views that are published, or were before, name them. Of two checkpoints with a row in common one counts: the other is of
a try that was never told that it had committed, behind which its rows were written once more.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine.failpoint import failpoint
from tasks.storage.commit import sha256_of
from tasks.storage.damage import DamagedError, tell
from tasks.storage.output_folder import OutputFolder
from tasks.storage.shard_manifest import PartFile, ShardManifest, Share
from tasks.storage.stored_json import read_json, stage_json

_PART_NAME = re.compile(r"[0-9a-f]+-[0-9a-f]+\.parquet", re.ASCII)
_CHECKPOINT = re.compile(r"checkpoint-(.+)-([0-9a-f]+-[0-9a-f]+)\.json", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Superseded:
    """A checkpoint that counts no more: its plan, the name of its shard's manifest, and that of its part."""

    plan_id: str
    shard: str
    part: str


def manifest_path(folder: OutputFolder, plan_id: str, shard_id: str) -> Path:
    return folder.manifests / f"shard-{plan_id}-{shard_id}.json"


def commit_manifest(folder: OutputFolder, manifest: ShardManifest) -> ShardManifest:
    """The manifest that counts: this one, or that of who committed the shard, or the checkpoint, before.

    One that is there and damaged is set aside, and this takes its place. Only the lock's holder may call it.
    """
    final = folder.manifests / manifest.name
    while not folder.commit(stage_json(folder.staged("manifest.json"), asdict(manifest)), final):
        try:
            return _load(folder, final)
        except DamagedError as problem:
            tell(problem, "another takes its place")
            folder.set_aside(final)
    return manifest


def find_manifest(folder: OutputFolder, plan_id: str, shard_id: str) -> ShardManifest | None:
    """A shard's manifest, or None while the shard is not committed."""
    try:
        return _load(folder, manifest_path(folder, plan_id, shard_id))
    except DamagedError:
        return None


def find_checkpoints(folder: OutputFolder, plan_id: str, shard_id: str) -> list[ShardManifest]:
    """Those of a shard that is not committed, no row of which is in two. Only the lock's holder may call it."""
    found = []
    for path in sorted(folder.manifests.glob(f"checkpoint-{plan_id}-{shard_id}-*.json")):
        with suppress(DamagedError):
            found.append(_load(folder, path))
    return _remove_overlaps(folder, found)


def read_manifests(folder: OutputFolder) -> list[ShardManifest]:
    """Every manifest that counts and whose parts are there with the right size, by name; others are passed over."""
    return _without_overlaps(folder, _read(folder, _load)[0])


def inspect_manifests(folder: OutputFolder) -> tuple[list[ShardManifest], dict[Path, DamagedError]]:
    """Every manifest that counts and whose parts are there to the byte; paths of damaged ones, with what is wrong."""
    good, damaged = _read(folder, _load_whole)
    return _without_overlaps(folder, good), damaged


def verify_manifests(folder: OutputFolder) -> list[ShardManifest]:
    """As `inspect_manifests`; what is damaged is set aside as `*.bad`: its rows are to be scored again.

    Only the lock's holder may call it. Parts that no manifest names are removed.
    """
    good, damaged = _read(folder, _load_whole)
    while damaged:
        for path, problem in damaged.items():
            tell(problem, "its shard will be scored again")
            for file in {path, problem.path}:
                if os.path.lexists(file):
                    folder.set_aside(file)
        good, damaged = _read(folder, _load_whole)  # a shard's checkpoints may be there yet
    _remove_orphans(folder, good)
    return _remove_overlaps(folder, good)


def remove_superseded(folder: OutputFolder, run_id: str, kept_plans: Collection[str | None]) -> None:
    """Removes the checkpoints of committed shards, but for those that views of before this run may name, which are open
    elsewhere: those of shards, of plans that are kept, in which another run has a share.

    Only the lock's holder may call it, once views are published that name none.
    """
    manifests = read_manifests(folder)
    named = {part.name for manifest in manifests for part in manifest.files}
    own = {one.name for one in manifests if {share.run_id for share in one.shares} <= {run_id}}
    for path, one in _superseded(folder).items():
        if one.plan_id in kept_plans and one.shard not in own:
            continue
        folder.remove(path)
        failpoint("checkpoint.removed")
        if one.part not in named:  # a checkpoint that held the whole shard is the shard's part
            folder.remove(folder.parts / one.part)


def shard_of(path: Path) -> str:
    """The id of the shard that a manifest is of, by its name."""
    found = _CHECKPOINT.fullmatch(path.name)
    return found[2].partition("-")[0] if found else path.stem.rpartition("-")[2]


def part_files(manifests: Sequence[ShardManifest]) -> list[str]:
    """Paths of the parts, relative to the output folder; equal shards may name one part."""
    return list(dict.fromkeys(f"parts/{part.name}" for manifest in manifests for part in manifest.files))


def _read(
    folder: OutputFolder, load: Callable[[OutputFolder, Path], ShardManifest]
) -> tuple[list[ShardManifest], dict[Path, DamagedError]]:
    """Of one moment: where a checkpoint went meanwhile, its shard's manifest has come, and all are listed again."""
    while True:
        good: list[ShardManifest] = []
        damaged: dict[Path, DamagedError] = {}
        for path in _paths(folder):
            try:
                good.append(load(folder, path))
            except DamagedError as problem:
                damaged[path] = problem
        if all(os.path.lexists(path) for path in damaged):
            return good, damaged


def _paths(folder: OutputFolder) -> list[Path]:
    superseded = _superseded(folder)
    return [path for path in _listed(folder) if path not in superseded]


def _superseded(folder: OutputFolder) -> dict[Path, _Superseded]:
    """The checkpoints of shards that have a manifest."""
    paths = _listed(folder)
    names = {path.name for path in paths}
    found = {}
    for path in paths:
        if match := _CHECKPOINT.fullmatch(path.name):
            shard = f"shard-{match[1]}-{match[2].partition('-')[0]}.json"
            if shard in names:
                found[path] = _Superseded(match[1], shard, f"{match[2]}.parquet")
    return found


def _listed(folder: OutputFolder) -> list[Path]:
    if not folder.manifests.is_dir():
        return []
    return sorted([*folder.manifests.glob("checkpoint-*.json"), *folder.manifests.glob("shard-*.json")])


def _load(folder: OutputFolder, path: Path) -> ShardManifest:
    """Raises DamagedError for a manifest that is truncated, foreign, or names a part that is not there whole."""
    content = read_json(path)
    try:
        files = tuple(PartFile(**part) for part in content.pop("files"))
        shares = tuple(Share(**share) for share in content.pop("shares", ()))
        manifest = ShardManifest(files=files, shares=shares, **content)
    except (TypeError, KeyError):
        raise DamagedError(path, "is another version's") from None
    if folder.manifests / manifest.name != path:
        raise DamagedError(path, "is another shard's")
    for part in files:
        if not _PART_NAME.fullmatch(part.name):
            raise DamagedError(path, "names a part that is not one of ours")
        _check_size(folder.parts / part.name, part.bytes)
    return manifest


def _remove_overlaps(folder: OutputFolder, manifests: Sequence[ShardManifest]) -> list[ShardManifest]:
    """Removes the checkpoints that do not count; rows that only they have are to be scored again."""
    kept = _without_overlaps(folder, manifests)
    names = {manifest.name for manifest in kept}
    for manifest in manifests:
        if manifest.name not in names:
            folder.remove(folder.manifests / manifest.name)
    return kept


def _without_overlaps(folder: OutputFolder, manifests: Sequence[ShardManifest]) -> list[ShardManifest]:
    """Those without each checkpoint that has a row of a larger one of its shard."""
    checkpoints: defaultdict[tuple[str, str], list[ShardManifest]] = defaultdict(list)
    for manifest in manifests:
        if manifest.is_checkpoint:
            checkpoints[manifest.plan_id, manifest.shard_id].append(manifest)
    overlapping = {one.name for some in checkpoints.values() if len(some) > 1 for one in _overlapping(folder, some)}
    return [manifest for manifest in manifests if manifest.name not in overlapping]


def _overlapping(folder: OutputFolder, checkpoints: Sequence[ShardManifest]) -> Iterator[ShardManifest]:
    known: set[str] = set()
    for manifest in sorted(checkpoints, key=lambda one: -one.requests):
        own = {row for part in manifest.files for row in _requests_of(folder.parts / part.name)}
        if not known.isdisjoint(own):
            yield manifest
        else:
            known |= own


def _requests_of(part: Path) -> list[str]:
    """None of a part that cannot be read, as whoever checks its bytes finds, or that has gone meanwhile."""
    try:
        found: list[str] = pq.ParquetFile(part).read(["request_hash"]).column(0).to_pylist()
    except (OSError, pa.ArrowException):
        return []
    return found


def _check_size(part: Path, size: int) -> None:
    if not part.is_file() or part.is_symlink():
        raise DamagedError(part, "is no file" if os.path.lexists(part) else "is gone")
    if part.stat().st_size != size:
        raise DamagedError(part, f"has {part.stat().st_size:,} bytes of {size:,}")


def _load_whole(folder: OutputFolder, path: Path) -> ShardManifest:
    """As `_load`, to the byte."""
    manifest = _load(folder, path)
    for part in manifest.files:
        if sha256_of(folder.parts / part.name) != part.sha256:
            raise DamagedError(folder.parts / part.name, "is damaged: its bytes are not those that were committed")
    return manifest


def _remove_orphans(folder: OutputFolder, good: Sequence[ShardManifest]) -> None:
    """A run killed between a part and its manifest leaves the part behind."""
    named = {part.name for manifest in good for part in manifest.files}
    named |= {one.part for one in _superseded(folder).values()}
    for path in folder.parts.iterdir():
        if not _PART_NAME.fullmatch(path.name) or path.name in named:
            continue
        if path.is_dir() and not path.is_symlink():
            folder.set_aside(path)  # somebody's, whatever its name: it may hold what they want
        else:
            folder.remove(path)
