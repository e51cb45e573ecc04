"""Who may read what a run leaves."""

import os

import pytest

from engine.errors import UserError
from tasks.storage.output_folder import OutputFolder
from tests.tasks.conftest import JobMaker
from tests.tasks.steps import run_steps

ROWS = [{"text": "one"}]


@pytest.mark.fault(25)
@pytest.mark.usefixtures("all_files")
@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(None, 0o600, 0o700), ("027", 0o640, 0o750), ("0022", 0o644, 0o755)]
)
@pytest.mark.parametrize("of_process", [0o000, 0o077])
def test_the_owner_alone_or_whom_the_umask_lets(
    job_of: JobMaker, monkeypatch: pytest.MonkeyPatch, umask: str | None, file: int, folder: int, of_process: int
) -> None:
    """The process's own umask changes nothing."""
    if umask is not None:
        monkeypatch.setenv("TRUNKLINE_UMASK", umask)
    job = job_of(ROWS)
    before = os.umask(of_process)
    try:
        run_steps(job)
    finally:
        os.umask(before)
    paths = [job.output_folder, *job.output_folder.rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {file}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {folder}
    assert OutputFolder(job.output_folder).database in paths


@pytest.mark.parametrize("umask", ["0", "002", "077x", "777", "-1", "770"])
def test_an_umask_that_lets_others_write_is_refused(
    job_of: JobMaker, monkeypatch: pytest.MonkeyPatch, umask: str
) -> None:
    monkeypatch.setenv("TRUNKLINE_UMASK", umask)
    with pytest.raises(UserError, match=r"^TRUNKLINE_UMASK: '.+' is not 077 \(the owner alone\)"):
        run_steps(job_of(ROWS))
