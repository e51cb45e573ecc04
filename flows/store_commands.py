"""`trunkline store`: what a scoring store holds, whether it is whole, and what is removed from it."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.errors import UserError
from engine.figures import figure

# Whatever reaches pyarrow is imported inside the command, so that --help is instant.
if TYPE_CHECKING:
    from tasks.store.scoring_store import ScoringStore

store_app = typer.Typer(no_args_is_help=True, help="Look after a scoring store, the folder that jobs name as store:")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The store's folder.", show_default=False)]

_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


@store_app.command(epilog="Example: [bold]trunkline store stats runs/store[/bold]")
def stats(folder: Folder) -> None:
    """Print what a store holds: a line for each model in each precision, and the bytes that are in no output folder."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tasks.store.upkeep import store_stats

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, whole in (("shelf", True), ("model", False), ("precision", False)):
        table.add_column(name, no_wrap=whole, overflow="fold", min_width=8)
    for name in ("results", "size", "its own", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    shelves = store_stats(_existing(folder))
    for one in shelves:
        counts = (f"{one.rows:,}", size_words(one.size), size_words(one.own))
        age = f"{age_words(one.newest)} to {age_words(one.oldest)}"
        table.add_row(one.shelf[:8], one.model, one.precision, *counts, age)
    Console().print(table)
    if set_aside := sum(one.set_aside for one in shelves):
        typer.echo(f"{set_aside:,} damaged parts were set aside as *.bad")


@store_app.command(epilog="Example: [bold]trunkline store verify runs/store[/bold]")
def verify(folder: Folder) -> None:
    """Read every byte; parts that are damaged are set aside as *.bad, and exit code 1 says that there were any."""
    from tasks.store.upkeep import verify_store

    found = verify_store(_existing(folder))
    typer.echo(f"{found.whole:,} parts are whole, {len(found.damaged):,} were set aside as *.bad")
    for part in found.damaged:
        typer.echo(f"  {part}")
    if found.damaged:
        raise typer.Exit(1)


@store_app.command(epilog="Example: [bold]trunkline store prune runs/store --older-than 30d --dry-run[/bold]")
def prune(
    folder: Folder,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Results older than this, such as 30d, 12h or 2w.")
    ] = None,
    keep_gib: Annotated[
        float | None, typer.Option("--keep-gib", min=0, help="The oldest results beyond so many GiB.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Results of this model alone, by its name.")] = None,
    shelf: Annotated[str | None, typer.Option("--shelf", help="Results of this shelf alone, as stats has it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove results. Output folders keep theirs, and runs that use the store go on."""
    from tasks.store.upkeep import choose, remove

    if older_than is None and keep_gib is None and model is None and shelf is None:
        raise UserError("store prune: say what to remove with --older-than 30d, --keep-gib 20, --model or --shelf")
    store = _existing(folder)
    keep = None if keep_gib is None else round(keep_gib * 2**30)
    seconds = None if older_than is None else age_seconds(older_than)
    parts = choose(store, older_than=seconds, keep_bytes=keep, shelf=shelf, model=model)
    if not dry_run:
        remove(store, parts)
    whole, own = (sum(part.size for part in parts if part.own or both) for both in (True, False))
    said = "would remove" if dry_run else "removed"
    typer.echo(f"{said} {len(parts):,} parts of {size_words(whole)}; {size_words(own)} of it are in no output folder")


def _existing(folder: Path) -> "ScoringStore":
    """Raises UserError where there is no store."""
    from tasks.store.scoring_store import ScoringStore

    store = ScoringStore(folder.expanduser().absolute())
    if not store.exists:
        raise UserError(f"{folder}: is no scoring store; name the folder that a job has as store:")
    return store


def age_seconds(text: str) -> float:
    """Raises UserError for what is no age."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip(), re.ASCII)
    if match is None:
        raise UserError(f"--older-than {text}: write it like 30d, 12h, 90m or 2w")
    return float(match[1]) * _SECONDS[match[2]]


def age_words(seconds: float) -> str:
    unit = "d" if seconds >= 2 * _SECONDS["d"] else "h" if seconds >= 2 * _SECONDS["h"] else "m"
    return f"{max(seconds, 0) / _SECONDS[unit]:.0f}{unit}"


def size_words(size: int) -> str:
    return f"{figure(size / 2**30)} GiB" if size >= 2**30 else f"{figure(size / 2**20)} MiB"
