"""Trunkline against its peers, on one machine, in turns: `make bench-peers`.

    python -m examples.peers --only tree --rounds 1 --budget-minutes 60

Every measurement is a process of its own that loads, warms up and times one batch. In the first round our precisions
run, then each peer in all of its variants; the fastest of these is the one that takes turns with us in later rounds,
its first time included. What is measured lies in FOLDER/results.jsonl and is not measured again: a run that was cut
off continues, and to begin anew the file is removed. Results on standard output, progress on the other.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.errors import UserError
from engine.timed_run import PRECISIONS
from examples.peers.environments import PEERS, environment, install, write_model
from examples.peers.journal import OURS, Journal, Measurement
from examples.peers.shapes import SHAPES, Shape, write_workload
from examples.peers.table import markdown

ROOT = Path(__file__).parents[2]
# The slowest that is known takes eight minutes a batch, of which one process times two.
LIMIT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One process: a side, and the variants that it measures."""

    shape: Shape
    round: int
    side: str
    variants: tuple[str, ...]


def turns(shapes: list[Shape], precisions: list[str], rounds: int, journal: Journal) -> Iterator[Turn]:
    """What is not measured yet, in order. The journal is asked turn by turn: the first round decides what follows."""
    for number in range(1, rounds + 1):
        for shape in shapes:
            yield from _round(shape, precisions, number, journal)


def _round(shape: Shape, precisions: list[str], number: int, journal: Journal) -> Iterator[Turn]:
    for precision in precisions:
        if not journal.has(shape, number, OURS, precision):
            yield Turn(shape, number, OURS, (precision,))
    for peer in shape.peers:
        best = journal.best_variant(shape, peer)
        tried = [f"{dtype} {order}" for dtype, order in PEERS[peer].variants] if number == 1 else [best] if best else []
        missing = [one for one in tried if not journal.has(shape, number, peer, one)]
        for dtype in dict.fromkeys(one.partition(" ")[0] for one in missing):
            yield Turn(shape, number, peer, tuple(one for one in missing if one.partition(" ")[0] == dtype))


def command(turn: Turn, folder: Path) -> list[str]:
    workload, model = write_workload(turn.shape, folder / "workloads"), write_model(folder)
    kv = ["--kv-gib", str(turn.shape.kv_gib)]
    if turn.side == OURS:
        dtype, quantization = PRECISIONS[turn.variants[0]]
        ours = [sys.executable, "-m", "engine.bench", str(workload), "--model", str(model), *kv]
        return [*ours, "--dtype", dtype, "--quantization", quantization]
    peer = PEERS[turn.side]
    theirs = [str(peer.python(folder)), str(peer.runner), str(model), str(workload), *(kv if peer.takes_kv else [])]
    theirs += ["--dtype", turn.variants[0].partition(" ")[0]]
    return theirs + [part for variant in turn.variants for part in ("--order", variant.partition(" ")[2])]


def start(arguments: list[str], variables: dict[str, str], folder: Path) -> list[dict[str, Any]]:
    """The reports that a process printed, a line each. Raises UserError with the end of what it said if it fails."""
    try:
        done = subprocess.run(
            arguments, env=variables, cwd=folder, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise UserError(f"{arguments[0]}: {problem}") from None
    if done.returncode:
        raise UserError(f"{' '.join(arguments)} ended with {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    return [line for line in lines if "seconds" in line]


def measure(turn: Turn, folder: Path) -> list[Measurement]:
    """Raises UserError where the process fails, or answers another number of batches than were asked for."""
    ours = turn.side == OURS
    if not ours:
        install(PEERS[turn.side], folder)
    # A peer must not find our modules: transformers takes the folder `kernels` for the distribution of that name.
    reports = start(command(turn, folder), environment(), ROOT if ours else folder)
    if len(reports) != len(turn.variants):
        raise UserError(f"{turn.side} on {turn.shape.name}: {len(reports)} results for {len(turn.variants)} batches")
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        Measurement(turn.shape.label, turn.round, turn.side, variant, at, _revision(), report)
        for variant, report in zip(turn.variants, reports, strict=True)
    ]


def _revision() -> str:
    git = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no revision"


def run_turns(
    shapes: list[Shape], precisions: list[str], rounds: int, journal: Journal, folder: Path, deadline: float
) -> list[str]:
    """Measures until all is there or the time is up; returns what failed. A failure does not stop the others."""
    failures = []
    for turn in turns(shapes, precisions, rounds, journal):
        if time.monotonic() > deadline:
            typer.echo("the time is up; the same command continues", err=True)
            break
        what = f"{turn.shape.name}, round {turn.round}: {turn.side}, {' and '.join(turn.variants)}"
        typer.echo(what, err=True)
        try:
            for measurement in measure(turn, folder):
                journal.add(measurement)
                typer.echo(f"  {measurement.variant}: {measurement.seconds:.1f} s", err=True)
        except (UserError, subprocess.CalledProcessError) as problem:
            failures.append(what)
            typer.echo(f"  failed: {problem}", err=True)
    return failures


def _chosen(names: list[str], known: list[str], option: str) -> list[str]:
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint=option)
    return names or known


def compare(
    only: Annotated[list[str], typer.Option(help="Workloads; all of them where none is named.")] = [],  # noqa: B006
    precision: Annotated[list[str], typer.Option(help="Ours; all of them where none is named.")] = [],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    budget_minutes: Annotated[float, typer.Option(min=0, help="Nothing is started after this time.")] = 24 * 60,
    folder: Annotated[Path, typer.Option(help="For environments, workloads, results.")] = ROOT / ".peers",
) -> None:
    """Time Trunkline and its peers in turns, and print a Markdown table."""
    deadline = time.monotonic() + 60 * budget_minutes
    names = _chosen(only, [shape.name for shape in SHAPES], "--only")
    shapes = [shape for shape in SHAPES if shape.name in names]
    precisions = _chosen(precision, list(PRECISIONS), "--precision")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "results.jsonl")
    failures = run_turns(shapes, precisions, rounds, journal, folder, deadline)
    text = markdown(journal, shapes, precisions)
    (folder / "results.md").write_text(text + "\n")
    typer.echo(text)
    if failures:
        typer.echo(f"{len(failures)} failed: {'; '.join(failures)}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(compare)
