"""JSON files that tell damage: one line each, whose last key is a digest of all the others."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.storage.commit import open_private
from tasks.storage.damage import DamagedError

_DIGEST = "digest"


def stage_json(staged: Path, content: Mapping[str, Any]) -> Path:
    """One line, so that DuckDB reads a list of such files as rows."""
    with open_private(staged) as file:
        file.write(_sealed(content))
    return staged


def read_json(path: Path) -> dict[str, Any]:
    """What `stage_json` was given. Raises DamagedError for any other content, a folder or a file that is not there."""
    try:
        written = path.read_bytes()
        content = json.loads(written)
        if isinstance(content, dict):
            content.pop(_DIGEST, None)
            if _sealed(content) == written:
                return content
    except (OSError, ValueError, RecursionError):
        pass
    raise DamagedError(path, "is not as it was written")


def _sealed(content: Mapping[str, Any]) -> bytes:
    plain = json.dumps(content, allow_nan=False)
    digest = hashlib.sha256(plain.encode()).hexdigest()[:32]
    return json.dumps({**content, _DIGEST: digest}, allow_nan=False).encode() + b"\n"
