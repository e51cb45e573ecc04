"""Finished measurements, one JSON line each: what a run that was cut off goes on from."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from examples.peers.shapes import Shape

OURS = "trunkline"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One timed batch. `variant` is a precision of ours, or a peer's dtype and order; `report` is what its run said."""

    workload: str
    round: int
    side: str
    variant: str
    at: str
    revision: str
    report: dict[str, Any]

    @property
    def key(self) -> tuple[str, int, str, str]:
        return self.workload, self.round, self.side, self.variant

    @property
    def seconds(self) -> float:
        return float(self.report["seconds"])


class Journal:
    """Measurements by workload, round, side and variant; each is in the file when `add` returns."""

    def __init__(self, file: Path) -> None:
        self._file = file
        lines = file.read_text().splitlines() if file.is_file() else []
        self._all = {one.key: one for one in (Measurement(**json.loads(line)) for line in lines)}

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self._all.values())

    def add(self, measurement: Measurement) -> None:
        self._all[measurement.key] = measurement
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as sink:
            sink.write(json.dumps(asdict(measurement)) + "\n")

    def of(self, shape: Shape, side: str, variant: str | None = None) -> list[Measurement]:
        return [
            one for one in self if (one.workload, one.side) == (shape.label, side) and variant in (None, one.variant)
        ]

    def has(self, shape: Shape, number: int, side: str, variant: str) -> bool:
        return (shape.label, number, side, variant) in self._all

    def best_variant(self, shape: Shape, peer: str) -> str | None:
        """The fastest of the first round, in which the peer tries all of its variants."""
        first = [one for one in self.of(shape, peer) if one.round == 1]
        return min(first, key=lambda one: one.seconds).variant if first else None
