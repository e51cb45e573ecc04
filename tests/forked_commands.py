"""Commands `trunkline` in forks of a process that has imported what they need: a start takes seconds.

`serve` is that process. The command that a shell finds is `write_command`'s: it hands its arguments, environment,
working directory and standard files over, and ends as the fork does. One whose environment differs is started as a
person's is, for modules look at it when they are imported.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# What a shell, `make` and pytest set for each command.
EACH = ("PWD", "OLDPWD", "SHLVL", "_", "MAKE", "MFLAGS", "PYTEST_CURRENT_TEST")
IMPORTED = ("engine.forward.load", "engine.loop.build", "flows.cli", "flows.score", "tasks.query", "trunkline")


@contextmanager
def forked_commands(command: Path, environment: dict[str, str]) -> Iterator[None]:
    """The commands that `command`, which is written here, is called for are forks; those in `environment`."""
    address = f"{command}.socket"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -SEP "{__file__}" "{address}" "$@"\n')
    command.chmod(0o755)
    started = Path(sys.executable).parent / "trunkline"
    code = "import sys; from tests.forked_commands import serve; serve(*sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", code, address, str(started)], env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield
        finally:
            server.kill()


def ask(address: str, arguments: list[str]) -> int:
    """Exit code of the fork."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(address)
        asked = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(asking, [b"f"], [0, 1, 2])
        asking.sendall(json.dumps(asked).encode())
        asking.shutdown(socket.SHUT_WR)
        return int(asking.recv(16))


def serve(address: str, started: str) -> None:
    """One command after the other. `started` is what is run where no fork will do."""
    begun = dict(os.environ)  # imports add to it
    for name in IMPORTED:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        os.write(1, b"ready\n")
        while True:
            asking, _ = listening.accept()
            with asking:
                _, files, _, _ = socket.recv_fds(asking, 1, 3)
                asked = json.loads(asking.makefile().read())
                child = os.fork()
                if child == 0:
                    listening.close()
                    asking.close()
                    for number, file in enumerate(files):
                        os.dup2(file, number)
                    os.closerange(3, max(files) + 1)
                    os.chdir(asked["folder"])
                    arguments, environment = [started, *asked["arguments"]], asked["environment"]
                    if _kept(environment) != _kept(begun):
                        os.execve(started, arguments, environment)
                    _run(arguments)
                for file in files:
                    os.close(file)
                asking.sendall(b"%d" % (os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256))


def _run(arguments: list[str]) -> None:
    from engine.process import child
    from tests.tasks.forked_process import SpareProcess

    names: dict[str, Any] = {name: getattr(subprocess, name) for name in ("DEVNULL", "TimeoutExpired")}
    child.__dict__["subprocess"] = SimpleNamespace(Popen=SpareProcess(), **names)
    sys.argv = arguments
    code = 0
    try:
        importlib.import_module("trunkline").main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        # As an interpreter ends, but for taking it apart.
        importlib.import_module("atexit")._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _kept(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(EACH)}


if __name__ == "__main__":
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
