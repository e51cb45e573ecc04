"""A page as a browser has it: Debian's chromium, driven by its command line, whose requests go to a proxy that only
writes them down. Where no chromium is installed, there is nothing to open pages with.
"""

import re
import shutil
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# What the browser asks for on its own account.
OWN = re.compile(
    r"(clients\d|accounts|www)\.google\.com|gvt1\.com|(update|autofill|guide-pa|safebrowsing)\.googleapis\.com"
)


@dataclass(frozen=True)
class Opened:
    """The document as the browser has it, what it logs, what it asks its proxy for, and the seconds that it takes."""

    document: str
    logged: str
    requests: list[str]
    seconds: float


class Proxy(socketserver.StreamRequestHandler):
    """Answers nothing; the first line of each request is kept."""

    def handle(self) -> None:
        self.server.lines.append(self.rfile.readline().decode(errors="replace"))  # type: ignore[attr-defined]


@contextmanager
def proxy() -> Iterator[tuple[int, list[str]]]:
    """Its port, and what came."""
    lines: list[str] = []
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as server:
        server.lines = lines  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1], lines
        server.shutdown()
        thread.join()


def opened(url: str, profile: Path, *more: str) -> Opened:
    """What comes of opening a page; `profile` is a folder of the browser's own, `more` are flags of it."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    flags += [f"--user-data-dir={profile}", "--disable-background-networking", "--disable-component-update"]
    with proxy() as (port, requests):
        flags.append(f"--proxy-server=127.0.0.1:{port}")
        began = time.perf_counter()
        done = subprocess.run([CHROMIUM, *flags, *more, url], capture_output=True, text=True, timeout=120)
        seconds = time.perf_counter() - began
    assert done.returncode == 0, done.stderr[-2000:]
    asked = [line.split()[1] for line in requests if line.strip()]
    return Opened(done.stdout, done.stderr, [url for url in asked if not OWN.search(url)], seconds)
