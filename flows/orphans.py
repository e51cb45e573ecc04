"""Prefect stops the server that it started at a normal end alone; a run that is killed must not leave it behind.

`python flows/orphans.py TOKEN` waits for the end of its standard input, which comes with the end of the process that
started it, however that dies. Then it ends every process that inherited the token.
"""

import os
import secrets
import subprocess
import sys
from contextlib import suppress

import psutil

VARIABLE = "TRUNKLINE_RUN_TOKEN"

_watchers: list[subprocess.Popen[bytes]] = []  # keeps their pipes open


def end_orphans_with_me() -> None:
    """What this process starts from now on outlives it by a few seconds at most."""
    token = os.environ[VARIABLE] = secrets.token_hex(8)
    # A session of its own: Ctrl-C reaches all processes of a terminal's.
    # -P: neither the working directory nor this folder may hide a library.
    command = [sys.executable, "-P", __file__, token]
    nowhere = subprocess.DEVNULL
    pipe = subprocess.PIPE
    _watchers.append(subprocess.Popen(command, stdin=pipe, stdout=nowhere, stderr=nowhere, start_new_session=True))


def end_all(token: str) -> None:
    """SIGTERM, and SIGKILL for those that are still there five seconds later."""
    orphans = [process for process in psutil.process_iter() if process.pid != os.getpid() and _has(process, token)]
    for process in orphans:
        with suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(orphans, timeout=5)[1]:
        with suppress(psutil.Error):
            process.kill()


def _has(process: psutil.Process, token: str) -> bool:
    try:
        return bool(process.environ().get(VARIABLE) == token)
    except (psutil.Error, OSError):
        return False


if __name__ == "__main__":
    sys.stdin.read()
    end_all(sys.argv[1])
