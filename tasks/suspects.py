"""Finds the rows that kill the engine, in few deaths: each costs a load of the model."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _Group:
    """Rows asked at once. The `twin` is the other half of a group that died; `holds_killer` if this one must be why."""

    rows: tuple[int, ...]
    twin: "_Group | None" = None
    holds_killer: bool = False


class Suspects:
    """Rows in execution order, of which one or more kill the engine.

    A group that dies is halved. The later half is asked first: the engine admits rows in order, so the row that killed
    it was most likely early, and a later half that ends well blames the earlier one without another death. The oldest
    groups go first, so that healthy rows end between deaths. One killer of n rows costs at most log2(n) + `tries`
    deaths, and `tries` + 1 where the earlier halves are the guilty ones.
    """

    def __init__(self, rows: Sequence[int], tries: int) -> None:
        self._tries = tries
        self._groups = deque([_Group(tuple(rows))])
        self._asked = self._groups[0]
        self._kills: Counter[int] = Counter()

    @property
    def killers(self) -> list[int]:
        """The rows that killed it alone, as often as it takes."""
        return [row for row, kills in self._kills.items() if kills >= self._tries]

    def next(self) -> tuple[int, ...] | None:
        """The rows to ask next; None where all have ended or are killers."""
        while self._groups:
            self._asked = self._groups.popleft()
            if not self._asked.holds_killer or len(self._asked.rows) == 1:
                return self._asked.rows
            self._halve(self._asked.rows)
        return None

    def ended(self) -> None:
        """All rows of the group ended."""
        if self._asked.twin is not None:
            self._asked.twin.holds_killer = True

    def died(self, left: Sequence[int]) -> None:
        """The engine died; `left` are the group's rows that had not ended."""
        if len(left) > 1:
            self._halve(left)
        for row in left if len(left) == 1 else ():
            self._kills[row] += len(self._asked.rows) == 1
            if self._kills[row] < self._tries:
                self._groups.append(_Group((row,)))

    def _halve(self, rows: Sequence[int]) -> None:
        middle = len(rows) // 2
        early, late = _Group(tuple(rows[:middle])), _Group(tuple(rows[middle:]))
        early.twin, late.twin = late, early
        self._groups += [late, early]
