from pathlib import Path

import pytest

from tasks.report.used_folders import remember_folder, used_folders
from tasks.storage.output_folder import OutputFolder


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def made(root: Path) -> OutputFolder:
    folder = OutputFolder(root)
    folder.create()
    return folder


def test_folders_are_remembered_once_and_dropped_when_they_are_gone(tmp_path: Path) -> None:
    assert used_folders() == []
    one, other = made(tmp_path / "a b"), made(tmp_path / "é\n")
    for folder in (other, one, one):
        remember_folder(folder)
    assert used_folders() == [str(one), str(other)]
    other.root.rename(tmp_path / "moved")
    assert used_folders() == [str(one)]
    (tmp_path / "moved").rename(other.root)
    assert used_folders() == [str(one)], "it was forgotten, until a run uses it again"


def test_a_home_that_cannot_be_written_fails_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").touch()
    remember_folder(OutputFolder(tmp_path))
    assert "not remembered" in caplog.text
