"""A run goes on where nobody reads its console any more, as behind a worker that was killed.

Prefect's console handler prints through rich, which ends the program by SystemExit at a broken pipe: the flow run would
be Crashed at its next line.
"""

import logging
import os
from functools import partial

from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console


def outlive_console() -> None:
    """What Prefect logs goes to its server alone once the console is gone. Called when a flow begins."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in {one for logger in loggers for one in getattr(logger, "handlers", ())}:
        if isinstance(handler, PrefectConsoleHandler):
            handler.console.on_broken_pipe = partial(_silence, handler.console)  # type: ignore[method-assign]


def _silence(console: Console) -> None:
    console.quiet = True
    # Whoever else writes there would meet the same pipe.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, console.file.fileno())
    os.close(nowhere)
