"""What is written in the place of a file of somebody's."""

import os
from pathlib import Path

import pytest

from tasks.storage.commit import replacing


def test_the_file_stays_until_the_other_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "answers.csv"
    target.write_text("mine")
    with pytest.raises(FileNotFoundError), replacing(target) as staged, (staged / "none").open("wb"):
        pass
    assert target.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]
    with replacing(target) as staged:
        staged.write_text("whole")
        assert target.read_text() == "mine"
    assert target.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]


def test_who_may_read_it_stays(tmp_path: Path) -> None:
    target = tmp_path / "answers.csv"
    for before, after in ((None, 0o600), (0o644, 0o644)):
        if before is not None:
            target.chmod(before)
        with replacing(target) as staged:
            staged.write_text("whole")
        assert target.stat().st_mode & 0o777 == after


def test_a_link_leads_to_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "answers.csv"
    target.write_text("mine")
    link = tmp_path / "answers.csv"
    link.symlink_to(target)
    with replacing(link) as staged:
        staged.write_text("whole")
    assert link.readlink() == target
    assert target.read_text() == "whole"


def test_a_pipe_is_no_place_for_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device"), replacing(tmp_path / "pipe"):
        pass
