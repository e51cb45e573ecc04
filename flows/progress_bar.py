"""The live bar of a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from engine.figures import percent
from flows.progress import Progress, watch
from flows.terminal_text import as_text


@contextmanager
def progress_bar(console: Console) -> Iterator[None]:
    """Shows the runs of this process on `console` while the context is open; where it is no terminal, only waits."""
    if not console.is_terminal:
        with watch(_Waits(console)):
            yield
        return
    bar = RichProgress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[done]}"),
        TextColumn("{task.fields[left]}"),
        console=console,
        transient=True,
        refresh_per_second=4,
        expand=True,
    )
    with bar:
        row = bar.add_task("starting", total=None, done="", left="")
        with watch(lambda progress: _show(bar, row, progress)):
            yield


class _Waits:
    """Says once whom a run waits for."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: str | None = None

    def __call__(self, progress: Progress) -> None:
        if progress.waiting_for not in (None, self._said):
            self._said = progress.waiting_for
            self._console.print(as_text(f"trunkline: waiting for {self._said}, which has the device"), soft_wrap=True)


def _show(bar: RichProgress, row: TaskID, progress: Progress) -> None:
    bar.update(
        row,
        description=progress.stage,
        completed=progress.fraction,
        total=1.0 if progress.tokens_per_second else None,
        done=done_words(progress),
        left=left_words(progress),
    )


def left_words(progress: Progress) -> str:
    return f"{time_words(progress.seconds_left)} left" if progress.seconds_left is not None else ""


def done_words(progress: Progress) -> str:
    """Tokens against the plan, rows, how fast, how near to the device's limit, and errors; rows alone before a plan."""
    if progress.work is None:
        return f"{progress.rows:,} rows" if progress.rows else ""
    work, computed = progress.work, progress.computed
    kinds = [
        ("prefill", computed.prefill, work.prefill),
        ("label", computed.label, work.label),
        ("decode", computed.decode, work.decode),
        ("rows", progress.rows_done, progress.rows),
    ]
    counts = [f"{name} {done:,}/{total:,}" for name, done, total in kinds if total]
    speed = [f"{progress.tokens_per_second:,.0f} tokens/s"] if progress.tokens_per_second else []
    share = progress.computed.limit_share
    limit = [f"{percent(share)} of the limit"] if share is not None else []
    errors = [f"{progress.errors:,} errors"] if progress.errors else []
    return ", ".join(counts + speed + limit + errors)


def time_words(seconds: float) -> str:
    """`42 s`, `3 min 20 s` or `2 h 05 min`; `under 1 s` for a moment."""
    whole = round(seconds)
    if seconds > 0 and not whole:
        return "under 1 s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
