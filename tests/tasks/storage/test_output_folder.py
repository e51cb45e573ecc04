"""Who waits for an output folder, and who is refused."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import UserError
from tasks.storage.output_folder import OutputFolder

# Has the folder until its standard input ends.
HOLDER = """
import sys
from pathlib import Path
from tasks.storage.output_folder import OutputFolder
with OutputFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


class LetGo(logging.Handler):
    """Ends the holder's input once it is waited for."""

    def __init__(self, holder: "subprocess.Popen[str]") -> None:
        super().__init__()
        self.holder = holder
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        assert self.holder.stdin is not None
        self.holder.stdin.close()


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    folder = OutputFolder(tmp_path / "out")
    folder.create()
    return folder


@pytest.mark.fault(9)
def test_a_run_waits_for_the_one_before(folder: OutputFolder) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder.root], stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        let_go = LetGo(holder)
        log = logging.getLogger("tasks.storage.output_folder")
        log.addHandler(let_go)
        try:
            with folder.locked(wait=60) as mine:
                assert mine.pid == os.getpid()
        finally:
            log.removeHandler(let_go)
    [said] = let_go.said
    assert said.startswith(f"waiting for process {holder.pid} on ")
    assert said.endswith(f", which has {folder.root}")


@pytest.mark.fault(9)
@pytest.mark.parametrize(("wait", "words"), [(0.0, ""), (0.2, " after 0.2 s")])
def test_one_that_has_waited_enough_is_told_who_has_it(folder: OutputFolder, wait: float, words: str) -> None:
    who = rf"in use by process {os.getpid()} on \S+{words}; end it, or wait, as by score --wait SECONDS$"
    with folder.locked(), pytest.raises(UserError, match=who), folder.locked(wait):
        raise AssertionError("two have the folder")
