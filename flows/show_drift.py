"""`trunkline drift`: the two precisions' answers, compared on the terminal."""

from rich.console import Console
from rich.table import Table

from flows.terminal_text import as_text
from tasks.drift import Drift, measure_drift
from tasks.job import ScoringJob


def show_drift(job: ScoringJob, rows: int, console: Console) -> None:
    """Scores a sample twice and prints what moved; raises UserError as `measure_drift` does."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in drift_facts(measure_drift(job, rows)):
        table.add_row(as_text(name), as_text(value))
    console.print(table)


def drift_facts(drift: Drift) -> list[tuple[str, str]]:
    """Name and value, in the order in which a person asks."""
    facts = [("precision", f"{drift.chosen}, held against {drift.full}")]
    facts.append(("rows", f"{drift.requests:,}" + (f" ({drift.failed:,} more failed)" if drift.failed else "")))
    shares = (
        ("label agreement", drift.label_agreement),
        ("rows with the same tokens", drift.same_rows),
        ("tokens before a difference", drift.same_tokens),
    )
    facts += [(name, f"{share:.1%}") for name, share in shares if share is not None]
    facts.append(("log-probability difference", f"{drift.mean_difference:.4f} mean, {drift.max_difference:.4f} max"))
    return facts
