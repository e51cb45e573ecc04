import pytest

from tests.tasks.conftest import all_files, engine, job_of

__all__ = ["all_files", "engine", "job_of"]


@pytest.fixture(autouse=True)
def _whole_folders(all_files: None) -> None:
    """What a run leaves is what is asked here."""
