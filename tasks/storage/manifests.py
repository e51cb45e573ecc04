"""The manifests decide what is committed: one JSON file a shard, which names its part and the part's sha256."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.storage.commit import commit_file, sha256_of
from tasks.storage.damage import DamagedError, set_aside, tell
from tasks.storage.output_folder import OutputFolder
from tasks.storage.stored_json import read_json, stage_json

_PART_NAME = re.compile(r"[0-9a-f]+-[0-9a-f]+\.parquet", re.ASCII)


@dataclass(frozen=True, slots=True)
class PartFile:
    """A file in `parts/`, by name alone."""

    name: str
    sha256: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """A committed shard. Tokens are of its requests, each counted once, but `row_prompt_tokens`: of their rows.

    `errors` are requests; `row_errors` their rows, None where an earlier version committed the shard. `from_store` of
    its requests were taken from the scoring store, and no token of them was computed; such a manifest is no shard's.

    `plan_id` and `shard_id` together name the work: a retried shard has an older one's id under a new plan.
    """

    plan_id: str
    shard_id: str
    run_id: str
    shard_index: int
    fingerprint: str
    files: tuple[PartFile, ...]
    requests: int
    rows: int
    errors: int
    seconds: float
    prompt_tokens: int
    row_prompt_tokens: int
    planned_tokens: int
    computed_prompt_tokens: int
    generated_tokens: int
    row_errors: int | None = None
    from_store: int = 0


def manifest_path(folder: OutputFolder, plan_id: str, shard_id: str) -> Path:
    return folder.manifests / f"shard-{plan_id}-{shard_id}.json"


def write_manifest(folder: OutputFolder, manifest: ShardManifest) -> bool:
    """False where the shard was committed before."""
    final = manifest_path(folder, manifest.plan_id, manifest.shard_id)
    return commit_file(stage_json(folder.staged("manifest.json"), asdict(manifest)), final)


def find_manifest(folder: OutputFolder, plan_id: str, shard_id: str) -> ShardManifest | None:
    """A shard's manifest, or None while the shard is not committed."""
    try:
        return _load(folder, manifest_path(folder, plan_id, shard_id))
    except DamagedError:
        return None


def read_manifests(folder: OutputFolder) -> list[ShardManifest]:
    """Every manifest whose parts are there with the right size, by name; others are passed over."""
    good = []
    for path in _paths(folder):
        with suppress(DamagedError):
            good.append(_load(folder, path))
    return good


def inspect_manifests(folder: OutputFolder) -> tuple[list[ShardManifest], dict[Path, DamagedError]]:
    """Every manifest whose parts are there to the byte; the paths of the others, with what is wrong."""
    good, damaged = [], {}
    for path in _paths(folder):
        try:
            good.append(_check_parts(folder, _load(folder, path)))
        except DamagedError as problem:
            damaged[path] = problem
    return good, damaged


def verify_manifests(folder: OutputFolder) -> list[ShardManifest]:
    """As `inspect_manifests`; what is damaged is set aside as `*.bad`: its shard is to be scored again.

    Only the lock's holder may call it. Parts that no manifest names are removed.
    """
    good, damaged = inspect_manifests(folder)
    for path, problem in damaged.items():
        tell(problem, "its shard will be scored again")
        for file in {path, problem.path}:
            if os.path.lexists(file):
                set_aside(file)
    _remove_orphans(folder, good)
    return good


def part_files(manifests: Sequence[ShardManifest]) -> list[str]:
    """Paths of the parts, relative to the output folder; equal shards may name one part."""
    return list(dict.fromkeys(f"parts/{part.name}" for manifest in manifests for part in manifest.files))


def _paths(folder: OutputFolder) -> list[Path]:
    return sorted(folder.manifests.glob("shard-*.json")) if folder.manifests.is_dir() else []


def _load(folder: OutputFolder, path: Path) -> ShardManifest:
    """Raises DamagedError for a manifest that is truncated, foreign, or names a part that is not there whole."""
    content = read_json(path)
    try:
        files = tuple(PartFile(**part) for part in content.pop("files"))
        manifest = ShardManifest(files=files, **content)
    except (TypeError, KeyError):
        raise DamagedError(path, "is another version's") from None
    if manifest_path(folder, manifest.plan_id, manifest.shard_id) != path:
        raise DamagedError(path, "is another shard's")
    for part in files:
        if not _PART_NAME.fullmatch(part.name):
            raise DamagedError(path, "names a part that is not one of ours")
        _check_size(folder.parts / part.name, part.bytes)
    return manifest


def _check_size(part: Path, size: int) -> None:
    if not part.is_file() or part.is_symlink():
        raise DamagedError(part, "is no file" if os.path.lexists(part) else "is gone")
    if part.stat().st_size != size:
        raise DamagedError(part, f"has {part.stat().st_size:,} bytes of {size:,}")


def _check_parts(folder: OutputFolder, manifest: ShardManifest) -> ShardManifest:
    for part in manifest.files:
        if sha256_of(folder.parts / part.name) != part.sha256:
            raise DamagedError(folder.parts / part.name, "is damaged: its bytes are not those that were committed")
    return manifest


def _remove_orphans(folder: OutputFolder, good: Sequence[ShardManifest]) -> None:
    """A run killed between a part and its manifest leaves the part behind."""
    named = {part.name for manifest in good for part in manifest.files}
    for path in folder.parts.iterdir():
        if not _PART_NAME.fullmatch(path.name) or path.name in named:
            continue
        if path.is_dir() and not path.is_symlink():
            set_aside(path)  # somebody's, whatever its name: it may hold what they want
        else:
            path.unlink()
