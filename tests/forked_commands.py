"""Commands `trunkline` and `python` in forks of a process that has imported what they need: a start takes seconds.

`serve` is that process. The commands that a shell finds are `forked_commands`': they hand their arguments, environment,
working directory and standard files over, and end as the fork does. One whose environment differs is started as a
person's is, for modules look at it when they are imported; so is a `python` that runs neither a module of `engine/` nor
a text.
"""

import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# What a shell, `make`, its command line and pytest set for each command.
EACH = ("PWD", "OLDPWD", "SHLVL", "_", "MAKE", "MFLAGS", "FLAGS", "PYTEST_CURRENT_TEST")
# What a run looks at where it begins.
LATE = ("OTEL_EXPORTER_OTLP_ENDPOINT", "TRUNKLINE_LOG_FORMAT")
IMPORTED = ("engine.forward.load", "engine.loop.build", "flows.cli", "flows.score", "tasks.query", "trunkline")


@contextmanager
def forked_commands(programs: Path, environment: dict[str, str]) -> Iterator[None]:
    """`trunkline` and `python` of the folder `programs`, which are written here, are forks; those in `environment`."""
    address = str(programs / "forks.socket")
    for name in ("trunkline", "python"):
        command = programs / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -SEP "{__file__}" "{address}" {name} "$@"\n')
        command.chmod(0o755)
    code = "import sys; from tests.forked_commands import serve; serve(*sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", code, address], env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield
        finally:
            server.kill()


def ask(address: str, arguments: list[str]) -> int:
    """Exit code of the fork. The first of `arguments` is the program's name."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(address)
        asked = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(asking, [b"f"], [0, 1, 2])
        asking.sendall(json.dumps(asked).encode())
        asking.shutdown(socket.SHUT_WR)
        return int(asking.recv(16))


def serve(address: str) -> None:
    """One command after the other."""
    from engine.process.importing import importing

    begun = dict(os.environ)  # imports add to it
    with importing():
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
                    _run(asked["arguments"], asked["environment"], begun)
                for file in files:
                    os.close(file)
                asking.sendall(b"%d" % (os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256))


def _run(arguments: list[str], environment: dict[str, str], begun: dict[str, str]) -> None:
    program = str(Path(sys.executable).with_name(arguments[0]))
    main = _main(arguments)
    if main is None or _kept(environment) != _kept(begun):
        os.execve(program, [program, *arguments[1:]], environment)
    os.environ.update({name: environment[name] for name in LATE if name in environment})
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        # As an interpreter ends, but for taking it apart.
        importlib.import_module("atexit")._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main(arguments: list[str]) -> Callable[[], object] | None:
    """What the fork does; None where none will do."""
    match arguments:
        case ["trunkline", *_]:
            sys.argv = arguments
            return _trunkline
        case ["python", "-m", module, *_] if module.startswith("engine."):
            sys.argv = arguments[2:]
            return partial(runpy.run_module, module, run_name="__main__", alter_sys=True)
        case ["python", "-c", program]:
            sys.argv = ["-c"]
            return partial(exec, program, {"__name__": "__main__"})
    return None


def _trunkline() -> None:
    from engine.process import child
    from tests.tasks.forked_process import SpareProcess

    names: dict[str, Any] = {name: getattr(subprocess, name) for name in ("DEVNULL", "TimeoutExpired")}
    child.__dict__["subprocess"] = SimpleNamespace(Popen=SpareProcess(), **names)
    importlib.import_module("trunkline").main()


def _kept(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(EACH) and name not in LATE}


if __name__ == "__main__":
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
