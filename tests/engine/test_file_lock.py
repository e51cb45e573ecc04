"""Who has a lock is the kernel's to say, and the file's only to name."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.file_lock import HeldError, hold, holder_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.mark.fault(9)
def test_a_holder_is_named_and_gone_when_it_lets_go(path: Path) -> None:
    assert holder_of(path) is None
    with hold(path) as holder:
        assert holder.pid == os.getpid()
        assert holder_of(path) == holder
        with pytest.raises(HeldError, match=f"process {os.getpid()} on "), hold(path):
            pytest.fail("held twice")
        assert holder_of(path) == holder
    assert holder_of(path) is None


@pytest.mark.fault(10)
def test_a_file_that_names_a_living_process_holds_nothing(path: Path) -> None:
    path.write_text(json.dumps({"pid": os.getpid(), "host": "here", "token": "old"}))
    assert holder_of(path) is None
    with hold(path) as holder:
        assert holder.token != "old"


@pytest.mark.fault(10)
def test_one_process_id_twice_is_two_holders(path: Path) -> None:
    with hold(path) as first:
        pass
    with hold(path) as second:
        assert (second.pid, second.host) == (first.pid, first.host)
        assert second.token != first.token


ASKING = """
import sys
from pathlib import Path
from engine.file_lock import holder_of

print("asking", flush=True)
while True:
    holder_of(Path(sys.argv[1]))
"""


@pytest.mark.fault(9)
def test_whoever_asks_is_in_nobodys_way(path: Path) -> None:
    """Asking takes the lock for a moment; a run that begins in it is not refused."""
    path.touch()
    with subprocess.Popen([sys.executable, "-c", ASKING, str(path)], stdout=subprocess.PIPE) as asking:
        try:
            assert asking.stdout is not None
            assert asking.stdout.readline() == b"asking\n"
            ended = time.monotonic() + 0.5  # long enough for both processes to have had a turn
            while time.monotonic() < ended:
                with hold(path):
                    pass
        finally:
            asking.kill()


@pytest.mark.parametrize("content", ["", "{", "7", "[]", '{"pid": 3}', '{"pid": 4, "host": "old"}'])
def test_a_holder_that_has_not_said_its_name_is_one_all_the_same(path: Path, content: str) -> None:
    with hold(path):
        path.write_text(content)
        found = holder_of(path)
        assert found is not None
        assert found.token == ""
        with pytest.raises(HeldError), hold(path):
            pytest.fail("held twice")
