"""Where results go: a folder, or a prefix of a bucket, by a text of a job or of a command."""

import hashlib
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from engine.model.checkpoint import cache_dir
from tasks.job.job_part import FilePath

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_URL = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]*(?:/(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]+)*", re.ASCII)


def is_url(place: str) -> bool:
    """Whether it is in a bucket."""
    return place.startswith("s3://")


def checked_place(place: str) -> str:
    """A URL without slashes at its end, or the path as it is. Raises ValueError for a URL that holds no results."""
    scheme = _SCHEME.match(place)
    if scheme is None:
        return place
    url = place.rstrip("/")
    if scheme[1] != "s3":
        raise ValueError(f"{place:.60} is neither a folder nor a URL that begins with s3://")
    if not _URL.fullmatch(url):
        raise ValueError(f"{place:.60} is no such place; write it like s3://BUCKET/FOLDER")
    return url


def checked_folder(place: str) -> str:
    """Raises ValueError for a URL: what is named by it has to be a folder."""
    if _SCHEME.match(place) is not None:
        raise ValueError(f"{place:.60} is a URL; name a folder of this machine, or one that is mounted here")
    return place


def local_folder(place: str) -> Path:
    """A path's folder; of a URL that of its working copy, below Trunkline's cache."""
    if not is_url(place):
        return Path(place).expanduser().absolute()
    name = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return (cache_dir() / "buckets" / name).absolute()


OutputPlace = Annotated[FilePath, AfterValidator(checked_place)]
FolderPath = Annotated[FilePath, AfterValidator(checked_folder)]
