"""Who is there of a Dask cluster."""

from contextlib import suppress
from typing import Any

from distributed import Client

# For the scheduler to say who is there.
SECONDS_OF_A_LOOK = 10.0


def known_workers(client: Client) -> dict[str, dict[str, Any]]:
    """What the scheduler knows of each worker, by its address; nobody where it does not answer.

    `Client.scheduler_info` answers out of a cache, which a callback of the client's empties of workers every two
    seconds, so that now and then nobody would seem to be there.
    """
    scheduler = client.scheduler
    if scheduler is None:  # the client is closed
        return {}
    with suppress(OSError):  # TimeoutError is one
        found: dict[str, dict[str, Any]] = client.sync(
            scheduler.identity, n_workers=-1, callback_timeout=SECONDS_OF_A_LOOK
        )["workers"]
        return found
    return {}
