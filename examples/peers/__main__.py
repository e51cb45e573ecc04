"""Trunkline against its peers, on one machine, in turns: `make bench-peers`.

    python -m examples.peers --only tree --rounds 1 --budget-minutes 60

A measurement of ours is a process of its own; a peer, which takes minutes to start, stays loaded and idle between its
turns, and begins each on an empty prefix cache. In the first round our precisions run, then each peer in all of its
variants; the fastest of these is the one that takes turns with us in later rounds, its first time included. What is
measured lies in FOLDER/results.jsonl and is not measured again: a run that was cut off continues, and to begin anew the
file is removed. Results on standard output, progress on the other.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.bench.timed_run import PRECISIONS
from engine.errors import UserError
from examples.peers.environments import PEERS, environment, install, write_model
from examples.peers.journal import OURS, Journal, Measurement
from examples.peers.process import PeerProcess, run_once
from examples.peers.shapes import SHAPES, Shape, write_workload
from examples.peers.table import markdown

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Turn:
    """A batch of one side: its precision, or the peer's dtype and order."""

    shape: Shape
    round: int
    side: str
    variant: str


def turns(
    shapes: list[Shape], precisions: list[str], variants: list[str], rounds: int, journal: Journal
) -> Iterator[Turn]:
    """What is not measured yet, in order. The journal is asked turn by turn: the first round decides what follows."""
    for number in range(1, rounds + 1):
        for shape in shapes:
            yield from _round(shape, precisions, variants, number, journal)


def _round(shape: Shape, precisions: list[str], variants: list[str], number: int, journal: Journal) -> Iterator[Turn]:
    for precision in precisions:
        if not journal.has(shape, number, OURS, precision):
            yield Turn(shape, number, OURS, precision)
    for peer in shape.peers:
        best = journal.best_variant(shape, peer)
        tried = [f"{dtype} {order}" for dtype, order in PEERS[peer].variants] if number == 1 else [best] if best else []
        for variant in tried:
            if variant in variants and not journal.has(shape, number, peer, variant):
                yield Turn(shape, number, peer, variant)


class Sides:
    """Measures turns; keeps the peers' processes until the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._peers: dict[tuple[str, ...], PeerProcess] = {}

    def __enter__(self) -> "Sides":
        return self

    def __exit__(self, *details: Any) -> None:
        self._stack.__exit__(*details)

    def measure(self, turn: Turn) -> Measurement:
        """Raises UserError where the process fails."""
        workload = write_workload(turn.shape, self.folder / "workloads")
        if turn.side == OURS:
            report = run_once(self._ours(turn, workload), environment(), ROOT)
        else:
            report = self._peer(turn).ask(workload, turn.variant.partition(" ")[2])
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return Measurement(turn.shape.label, turn.round, turn.side, turn.variant, at, _revision(), report)

    def _ours(self, turn: Turn, workload: Path) -> list[str]:
        dtype, quantization = PRECISIONS[turn.variant]
        ours = [sys.executable, "-m", "engine.bench.run", str(workload), "--model", str(write_model(self.folder))]
        return [*ours, "--kv-gib", str(turn.shape.kv_gib), "--dtype", dtype, "--quantization", quantization]

    def _peer(self, turn: Turn) -> PeerProcess:
        peer, dtype = PEERS[turn.side], turn.variant.partition(" ")[0]
        kv = ("--kv-gib", str(turn.shape.kv_gib)) if peer.takes_kv else ()
        if (turn.side, dtype, *kv) not in self._peers:
            install(peer, self.folder)
            arguments = [
                str(peer.python(self.folder)),
                str(peer.runner),
                str(write_model(self.folder)),
                "--dtype",
                dtype,
            ]
            # A peer must not find our modules: transformers takes `kernels` for the distribution of that name.
            process = self._stack.enter_context(PeerProcess([*arguments, *kv], environment(), self.folder))
            self._peers[turn.side, dtype, *kv] = process
        return self._peers[turn.side, dtype, *kv]


def _revision() -> str:
    git = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no revision"


def run_turns(
    shapes: list[Shape],
    precisions: list[str],
    variants: list[str],
    rounds: int,
    journal: Journal,
    folder: Path,
    deadline: float,
) -> list[str]:
    """Measures until all is there or the time is up; returns what failed. A failure does not stop the others."""
    failures = []
    with Sides(folder) as sides:
        for turn in turns(shapes, precisions, variants, rounds, journal):
            if time.monotonic() > deadline:
                typer.echo("the time is up; the same command continues", err=True)
                break
            what = f"{turn.shape.name}, round {turn.round}: {turn.side}, {turn.variant}"
            try:
                measurement = sides.measure(turn)
                journal.add(measurement)
                typer.echo(f"{what}: {measurement.seconds:.1f} s", err=True)
            except (UserError, subprocess.CalledProcessError) as problem:
                failures.append(what)
                typer.echo(f"{what} failed: {problem}", err=True)
    return failures


def _chosen(names: list[str], known: list[str], option: str) -> list[str]:
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint=option)
    return names or known


def compare(
    only: Annotated[list[str], typer.Option(help="Workloads; all of them where none is named.")] = [],  # noqa: B006
    precision: Annotated[list[str], typer.Option(help="Ours; all of them where none is named.")] = [],  # noqa: B006
    variant: Annotated[list[str], typer.Option(help="Theirs, as 'bfloat16 sorted'; all where none is named.")] = [],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    budget_minutes: Annotated[float, typer.Option(min=0, help="Nothing is started after this time.")] = 24 * 60,
    folder: Annotated[Path, typer.Option(help="For environments, workloads, results.")] = ROOT / ".peers",
) -> None:
    """Time Trunkline and its peers in turns, and print a Markdown table."""
    deadline = time.monotonic() + 60 * budget_minutes
    names = _chosen(only, [shape.name for shape in SHAPES], "--only")
    shapes = [shape for shape in SHAPES if shape.name in names]
    precisions = _chosen(precision, list(PRECISIONS), "--precision")
    known = sorted({f"{dtype} {order}" for peer in PEERS.values() for dtype, order in peer.variants})
    variants = _chosen(variant, known, "--variant")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "results.jsonl")
    failures = run_turns(shapes, precisions, variants, rounds, journal, folder, deadline)
    text = markdown(journal, shapes, precisions)
    (folder / "results.md").write_text(text + "\n")
    typer.echo(text)
    if failures:
        typer.echo(f"{len(failures)} failed: {'; '.join(failures)}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(compare)
