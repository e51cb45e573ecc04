"""Processes that measure: ours, one a batch, and a peer's, which stays loaded between its batches."""

import json
import subprocess
import tempfile
from pathlib import Path
from threading import Timer
from typing import Any

from engine.errors import UserError

# The slowest batch that is known takes eight minutes.
LIMIT_SECONDS = 3600.0


def run_once(arguments: list[str], variables: dict[str, str], folder: Path) -> dict[str, Any]:
    """The report that a process printed last. Raises UserError with the end of what it said if it fails."""
    with PeerProcess(arguments, variables, folder) as process:
        return process.report()


class PeerProcess:
    """Answers a line with a report; loads before the first."""

    def __init__(self, arguments: list[str], variables: dict[str, str], folder: Path) -> None:
        self.arguments = arguments
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            arguments, env=variables, cwd=folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
        )  # fmt: skip

    def ask(self, workload: Path, order: str) -> dict[str, Any]:
        """Raises UserError with the end of what the process said if it ends instead."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"workload": str(workload), "order": order}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._failure() from None
        return self.report()

    def report(self) -> dict[str, Any]:
        """The next one that it prints; a process that takes too long is ended."""
        assert self._process.stdout is not None
        timer = Timer(LIMIT_SECONDS, self._process.kill)
        timer.start()
        try:
            for line in self._process.stdout:
                if line.startswith('{"') and "seconds" in (report := json.loads(line)):
                    return dict(report)
        finally:
            timer.cancel()
        raise self._failure()

    def _failure(self) -> UserError:
        code = self._process.wait()
        self._said.seek(0)
        return UserError(f"{' '.join(self.arguments)} ended with {code}:\n{self._said.read()[-2000:]}")

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        """It ends at the end of its input."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.communicate(timeout=60)
        except (subprocess.TimeoutExpired, ValueError):
            self._process.kill()
            self._process.wait()
        self._said.close()
