"""Stops Prefect's event loops before the interpreter is taken apart.

Their threads are daemons and would live to the end. What they still hold, a flow run's context and through it the
flow's modules, is then never freed, and DuckDB's binding says so over dozens of lines ("nanobind: leaked ...").
"""

import atexit

from prefect._internal.concurrency import threads

SECONDS = 2.0


def stop_at_exit() -> None:
    """Called before a flow begins, it stops them last: what Prefect registers later still needs them."""
    atexit.register(_stop)


def _stop() -> None:
    for loop in (threads._run_sync_loop, threads._global_loop):
        if loop is not None:
            loop.shutdown()
            loop.thread.join(SECONDS)
