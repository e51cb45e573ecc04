"""The working copy of a folder in a bucket, while others write there."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="an extra: pip install trunkline[s3]")

from engine.file_lock import Holder
from tasks.storage import bucket_folder
from tasks.storage.bucket import Bucket, Listed
from tasks.storage.bucket_folder import BucketFolder


@pytest.fixture
def folder(s3_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> BucketFolder:
    return BucketFolder(f"{s3_url}/copies/{request.node.name}", tmp_path / "copy")


def _part(content: bytes) -> str:
    return f"parts/00-{hashlib.sha256(content).hexdigest()[:16]}.parquet"


def test_a_reader_ends_while_a_run_elsewhere_writes(folder: BucketFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is always newer than it was listed, and once a part goes: what was hashed is not hashed again."""
    bucket, listed, passes, hashed = folder.bucket, Bucket.listed, [0], list[str]()
    kept, gone = _part(b"kept"), _part(b"gone")
    bucket.put(kept, b"kept")
    folder.look()
    bucket.put(gone, b"gone")

    def late(self: Bucket) -> dict[str, Listed]:
        found = listed(self)
        passes[0] += 1
        assert passes[0] < 5, "it lists without end"
        bucket.put("progress.json", str(passes[0]).encode())
        bucket.put("manifests/run-000001.json", str(passes[0]).encode())
        bucket.delete([gone])
        return found

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    bucket.put("progress.json", b"0")
    bucket.put("manifests/run-000001.json", b"0")
    monkeypatch.setattr(Bucket, "listed", late)
    monkeypatch.setattr(bucket_folder, "sha256_of", counted)
    folder.look()
    assert (passes[0], hashed) == (2, [Path(kept).name])
    assert (folder.root / "progress.json").read_bytes() in (b"1", b"2")
    assert (folder.root / "manifests/run-000001.json").read_bytes() in (b"1", b"2")
    assert (folder.root / kept).read_bytes() == b"kept"
    assert not (folder.root / gone).exists()


def test_the_last_progress_is_not_put_before_an_older_one(
    folder: BucketFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease's thread is in the middle of the older one as the run ends."""
    put, under_way, newest_is_put = Bucket.put, threading.Event(), threading.Event()

    def slow(self: Bucket, name: str, content: Path | bytes, *arguments: Any, **options: Any) -> None:
        if content == b"older":
            under_way.set()
            newest_is_put.wait(timeout=0.5)
        put(self, name, content, *arguments, **options)
        if content == b"newest":
            newest_is_put.set()

    monkeypatch.setenv("TRUNKLINE_LEASE_SECONDS", "1")
    monkeypatch.setattr(Bucket, "put", slow)
    folder.root.mkdir()
    with folder.held(Holder(1, "one", "token-1"), None):
        (folder.root / "progress.json").write_bytes(b"older")
        assert under_way.wait(timeout=30)
        (folder.root / "progress.json").write_bytes(b"newest")
    found = folder.bucket.get("progress.json")
    assert found is not None
    assert found[0] == b"newest"
