"""Prefect's temporary server, which comes up in a process of its own while the engine's imports the model's libraries.

Left alone, Prefect starts the same server when a flow begins, imports all of it into this process too, and waits.
`python flows/temporary_server.py FD` is the server, on a socket that its parent listens on.
"""

import asyncio
import atexit
import gc
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

SECONDS_TO_STOP = 5.0
# Of what the server does unasked: it takes milliseconds where it is due.
SECONDS_AT_WORK, SECONDS_AT_REST = 2.0, 60.0

_LOG = logging.getLogger(__name__)
BackgroundWorker = Callable[..., AbstractAsyncContextManager[None]]


class TemporaryServer:
    """A server of this process's own. Requests to it wait in the socket's queue until it is up."""

    def __init__(self) -> None:
        from prefect.context import refresh_global_settings_context

        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            # -P: neither the working directory nor this folder may hide a library.
            command = [sys.executable, "-P", __file__, str(listening.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[listening.fileno()])
        self._url = f"http://127.0.0.1:{port}/api"
        # Registered before Prefect's own exit functions, it runs after them: they send what is left.
        atexit.register(self.stop)
        os.environ["PREFECT_API_URL"] = self._url
        refresh_global_settings_context()

    def wait_until_ready(self) -> None:
        """Raises ConnectionError where it does not come up."""
        import httpx
        from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS as TIMEOUT

        try:
            httpx.get(f"{self._url}/health", timeout=TIMEOUT.value(), trust_env=False).raise_for_status()
        except httpx.HTTPError as problem:
            raise ConnectionError(f"Prefect's temporary server does not come up ({problem})") from problem

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start_server() -> TemporaryServer | None:
    """None where the user has a server, or wants none to be started."""
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE

    if PREFECT_API_URL.value() or not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        return None
    return TemporaryServer()


def in_rounds(
    worker: BackgroundWorker, at_work: float = SECONDS_AT_WORK, at_rest: float = SECONDS_AT_REST
) -> BackgroundWorker:
    """Prefect's `worker` for so many seconds, then none for so many, and again; one that has begun something ends it.

    It looks for work forty times a second, which took a hundredth of a core from the engine. There is little for it in
    a server of one run: old events are deleted once an hour, and automations may wait for an event that does not come.
    """

    @asynccontextmanager
    async def background_worker(*arguments: Any, **modes: Any) -> AsyncIterator[None]:
        over = asyncio.Event()

        async def until_over(seconds: float) -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), seconds)

        async def work() -> None:
            while not over.is_set():
                try:
                    async with worker(*arguments, **modes):
                        await until_over(at_work)
                except Exception as problem:
                    _LOG.warning("Prefect's background worker: %r; tried again in %.0f s", problem, at_rest)
                await until_over(at_rest)

        # Prefect's worker takes a cancellation for its own: it is told instead.
        rounds = asyncio.create_task(work())
        try:
            yield
        finally:
            over.set()
            await rounds

    return background_worker


def serve(descriptor: int) -> None:
    gc.disable()  # until all is imported, which leaves no garbage: a fifth of the time
    import uvicorn
    from prefect.server.api import server
    from prefect.server.api.server import create_app

    server.background_worker = in_rounds(server.background_worker)  # type: ignore[assignment,attr-defined]
    config = uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error", lifespan="on")
    gc.freeze()
    gc.enable()
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    serve(int(sys.argv[1]))
