"""`trunkline simulate`: a row a policy."""

import json
import sys
from typing import Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from engine.figures import figure, percent
from flows.progress_bar import time_words
from flows.text_table import UNLIMITED_WIDTH
from tasks.simulate import PolicyRun, Simulation


def show_simulation(found: Simulation, form: Literal["table", "json"]) -> None:
    if form == "json":
        typer.echo(json.dumps(found.as_json(), indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else UNLIMITED_WIDTH)
    devices = "1 device" if found.devices == 1 else f"{found.devices:,} devices"
    console.print(
        f"{found.rows:,} requests on {devices}, each {found.device}; the job's own policy first", markup=False
    )
    table = Table(box=box.SIMPLE_HEAD)
    heads = ("sharing", "order", "admission", "time", "computed", "saved", "decoded", "FLOP/s", "KV peak", "KV mean")
    for head in heads:
        table.add_column(head, justify="left" if head in heads[:3] else "right")
    table.add_column("device hours", justify="right")
    if any(run.cost is not None for run in found.policies):
        table.add_column("cost", justify="right")
    for run in found.policies:
        table.add_row(*_cells(run))
    console.print(table)
    refused = max((run.refused for run in found.policies), default=0)
    if refused:
        console.print(f"{refused:,} requests fit neither the context nor the KV budget", markup=False)


def _cells(run: PolicyRun) -> list[str]:
    # Policies of a short job differ in parts of a second.
    time = time_words(run.seconds) if run.seconds >= 60 else f"{figure(run.seconds, 2)} s"
    cells = [run.sharing, run.order, run.admission, time]
    cells += [f"{run.computed_tokens:,}", percent(run.saved_fraction), f"{run.decode_tokens:,}"]
    cells += [percent(share) for share in (run.utilisation, run.kv_peak, run.kv_mean)]
    cells.append(figure(run.device_hours))
    return cells if run.cost is None else [*cells, f"{run.cost:,.2f}"]
