from pathlib import Path

import pytest

from engine.errors import UserError
from tasks.report.latest import latest_output, remember_output
from tasks.storage.output_folder import OutputFolder


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_the_latest_wins(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        remember_output(OutputFolder(tmp_path / name))
    assert latest_output() == OutputFolder(tmp_path / "b")


def test_nothing_remembered_or_gone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run is remembered"):
        latest_output()
    remember_output(OutputFolder(tmp_path / "gone"))
    with pytest.raises(UserError, match="is gone"):
        latest_output()


def test_a_home_that_cannot_be_written_fails_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").touch()
    remember_output(OutputFolder(tmp_path))
    assert "not remembered" in caplog.text
