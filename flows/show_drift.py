"""`trunkline drift`: the two precisions' answers, compared on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from flows.terminal_text import as_text
from tasks.drift import Drift, measure_drift
from tasks.job.job import ScoringJob


def show_drift(job: ScoringJob, rows: int, console: Console, messages: Console) -> None:
    """Scores a sample twice and prints what moved; `messages` shows what is being done meanwhile.

    Raises UserError as `measure_drift` does.
    """
    with _doing(messages) as tell:
        drift = measure_drift(job, rows, tell)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in drift_facts(drift):
        table.add_row(as_text(name), as_text(value))
    console.print(table)


@contextmanager
def _doing(messages: Console) -> Iterator[Callable[[str], None]]:
    """Gives what shows a few words: in place on a terminal, else a line each."""
    if not messages.is_terminal:
        yield lambda words: messages.print(as_text(f"trunkline: {words}"), soft_wrap=True)
        return
    with messages.status("starting") as status:
        yield lambda words: status.update(as_text(words))


def drift_facts(drift: Drift) -> list[tuple[str, str]]:
    """Name and value, in the order in which a person asks."""
    facts = [("precision", f"{drift.chosen}, held against {drift.full}")]
    facts.append(("rows", f"{drift.requests:,}" + (f" ({drift.failed:,} more failed)" if drift.failed else "")))
    facts += [(name, f"{share:.1%}") for name, share in drift.same.items()]
    facts += [(measure, f"{found.mean:.4f} mean, {found.most:.4f} max") for measure, found in drift.moved.items()]
    return facts
