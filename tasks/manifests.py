"""The manifests decide what is committed: one JSON file a shard, which names its part and the part's sha256."""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.commit import commit_file, sha256_of, stage_json
from tasks.output_folder import OutputFolder

log = logging.getLogger(__name__)

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


def manifest_path(folder: OutputFolder, plan_id: str, shard_id: str) -> Path:
    return folder.manifests / f"shard-{plan_id}-{shard_id}.json"


def write_manifest(folder: OutputFolder, manifest: ShardManifest) -> bool:
    """False where the shard was committed before."""
    final = manifest_path(folder, manifest.plan_id, manifest.shard_id)
    return commit_file(stage_json(folder.staged("manifest.json"), asdict(manifest)), final)


def find_manifest(folder: OutputFolder, plan_id: str, shard_id: str) -> ShardManifest | None:
    """A shard's manifest, or None while the shard is not committed."""
    path = manifest_path(folder, plan_id, shard_id)
    return _load(folder, path) if path.is_file() else None


def read_manifests(folder: OutputFolder) -> list[ShardManifest]:
    """Every manifest whose parts are there with the right size, by name; others are passed over."""
    return [manifest for path in _paths(folder) if (manifest := _load(folder, path)) is not None]


def verify_manifests(folder: OutputFolder) -> list[ShardManifest]:
    """Reads every part against its sha256. What is damaged is set aside as `*.bad`: its shard is to be scored again.

    Only the lock's holder may call it. Parts that no manifest names are removed.
    """
    good = []
    for path in _paths(folder):
        manifest = _load(folder, path)
        if manifest is not None and all(sha256_of(folder.parts / part.name) == part.sha256 for part in manifest.files):
            good.append(manifest)
        else:
            _set_aside(folder, path, manifest)
    _remove_orphans(folder, good)
    return good


def part_files(manifests: Sequence[ShardManifest]) -> list[str]:
    """Paths of the parts, relative to the output folder; equal shards may name one part."""
    return list(dict.fromkeys(f"parts/{part.name}" for manifest in manifests for part in manifest.files))


def _paths(folder: OutputFolder) -> list[Path]:
    return sorted(folder.manifests.glob("shard-*.json")) if folder.manifests.is_dir() else []


def _load(folder: OutputFolder, path: Path) -> ShardManifest | None:
    """None for a manifest that is truncated, foreign, or names a part that is not there whole."""
    try:
        manifest = _from_json(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if manifest_path(folder, manifest.plan_id, manifest.shard_id) != path:
        return None
    sizes = [_size(folder.parts / part.name) for part in manifest.files]
    return manifest if sizes == [part.bytes for part in manifest.files] else None


def _from_json(content: Any) -> ShardManifest:
    files = tuple(PartFile(**part) for part in content.pop("files"))
    if not all(_PART_NAME.fullmatch(part.name) for part in files):
        raise ValueError("a part's name is not one of ours")
    return ShardManifest(files=files, **content)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else -1


def _set_aside(folder: OutputFolder, path: Path, manifest: ShardManifest | None) -> None:
    parts = [folder.parts / part.name for part in manifest.files] if manifest is not None else []
    log.warning("%s or its part is damaged: set aside as *.bad, its shard will be scored again", path.name)
    for file in [path, *parts]:
        if file.exists():
            file.rename(_bad_name(file))


def _bad_name(file: Path) -> Path:
    names = (file.with_name(f"{file.name}{suffix}") for suffix in (".bad", *(f".{n}.bad" for n in range(1, 1000))))
    return next(name for name in names if not name.exists())


def _remove_orphans(folder: OutputFolder, good: Sequence[ShardManifest]) -> None:
    """A run killed between a part and its manifest leaves the part behind."""
    named = {part.name for manifest in good for part in manifest.files}
    for path in folder.parts.iterdir():
        if _PART_NAME.fullmatch(path.name) and path.name not in named:
            path.unlink()
