"""A request to end a run is for one holding of the folder, and no other."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import UserError
from tasks.storage.output_folder import OutputFolder
from tasks.storage.stop_request import ask_to_stop, forget_requests, is_asked


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    made = OutputFolder(tmp_path / "out")
    made.create()
    return made


def test_who_holds_the_folder_is_asked(folder: OutputFolder) -> None:
    with folder.locked() as holder:
        assert not is_asked(folder, holder)
        found = folder.holder()
        assert found is not None
        ask_to_stop(folder, found)
        assert is_asked(folder, holder)
        forget_requests(folder, holder)
        assert is_asked(folder, holder), "it came before the run had looked"


@pytest.mark.fault(10)
def test_a_request_is_not_for_a_later_run_of_the_same_process_id(folder: OutputFolder) -> None:
    with folder.locked() as first:
        ask_to_stop(folder, first)
    with folder.locked() as second:
        assert second.pid == first.pid
        assert not is_asked(folder, second)
        forget_requests(folder, second)
        assert not folder.stop_request.exists()


@pytest.mark.parametrize("content", ["", '{"holder": "', "7", "[]", '{"holder": 7}', "\x00"])
def test_half_a_request_is_none(folder: OutputFolder, content: str) -> None:
    folder.stop_request.write_text(content)
    with folder.locked() as holder:
        assert not is_asked(folder, holder)


def test_a_request_names_no_process(folder: OutputFolder) -> None:
    with folder.locked() as holder:
        ask_to_stop(folder, replace(holder, pid=1))
        assert json.loads(folder.stop_request.read_text()) == {"holder": holder.token}
        assert folder.stop_request.stat().st_mode & 0o777 == 0o600


def test_a_folder_of_somebody_else_is_one_line(folder: OutputFolder) -> None:
    with folder.locked() as holder:
        os.mkdir(folder.stop_request)
        with pytest.raises(UserError, match=r"stop\.json: cannot be written"):
            ask_to_stop(folder, holder)
