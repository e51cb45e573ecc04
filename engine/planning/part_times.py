"""Which part of some work takes how long, learnt from pieces of it whose time is known as a whole."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# That all parts are as far from what is expected counts as so many pieces.
DOUBTED_PIECES = 2.0
# Of so many pieces that follow each other one may be an accident: it took so many times what any other took for its
# parts, and counts as if it had been that one.
PIECES_AN_ACCIDENT, ACCIDENT = 16, 4.0


class PartTimes:
    """A piece takes what its parts are, each times a factor of its own.

    Least squares over the pieces so far, no factor below 0. A piece weighs one over its expected time: the error of a
    sum over pieces is what counts, and it grows with their time. Until much is learnt, all parts are as far from what
    is expected as all pieces are. A piece that waited for something that will not come again, as the first step does
    for what is compiled, would be all that is learnt for long: see `ACCIDENT`.
    """

    def __init__(self, expected: Sequence[float] | Floats) -> None:
        """The factors before anything is learnt, of which only the proportions count later."""
        self._factors = np.array(expected, dtype=np.float64)
        self._sums = _Sums(len(expected))
        self._pieces: list[tuple[Floats, float, float]] = []  # the last ones: parts, expected seconds, seconds
        self.num_pieces = 0

    def learn(self, parts: Sequence[float] | Floats, seconds: float) -> None:
        """A piece of these `parts` took so long."""
        each = np.array(parts, dtype=np.float64)
        self._pieces.append((each, max(float(self._factors @ each), 1e-9), seconds))
        self.num_pieces += 1
        if len(self._pieces) == PIECES_AN_ACCIDENT:
            self._sums = self._with_the_last()
            self._pieces.clear()

    def factors(self) -> Floats:
        """One for each part."""
        sums = self._with_the_last()
        alike = (sums.seconds / sums.expected if self.num_pieces else 1.0) * self._factors
        doubt = DOUBTED_PIECES * np.diag(sums.squares) / max(self.num_pieces, 1)
        squares = sums.squares + np.diag(doubt)
        products = sums.products + doubt * alike
        factors = alike.copy()
        free = np.diag(squares) > 0
        while free.any():
            factors[free] = np.linalg.lstsq(squares[np.ix_(free, free)], products[free], rcond=None)[0]
            lowest = int(np.argmin(np.where(free, factors, 0.0)))
            if factors[lowest] >= 0:
                break
            factors[lowest], free[lowest] = 0.0, False
        return factors

    def _with_the_last(self) -> "_Sums":
        sums = self._sums.copy()
        for (parts, expected, _), seconds in zip(self._pieces, _without_accident(self._pieces), strict=True):
            sums.add(parts, expected, seconds)
        return sums


class _Sums:
    """What least squares needs of the pieces, weighed."""

    def __init__(self, num_parts: int) -> None:
        self.squares = np.zeros((num_parts, num_parts))
        self.products = np.zeros(num_parts)
        self.seconds = self.expected = 0.0

    def copy(self) -> "_Sums":
        other = _Sums(len(self.products))
        other.squares, other.products = self.squares.copy(), self.products.copy()
        other.seconds, other.expected = self.seconds, self.expected
        return other

    def add(self, parts: Floats, expected: float, seconds: float) -> None:
        self.squares += np.outer(parts, parts) / expected
        self.products += seconds / expected * parts
        self.seconds += seconds
        self.expected += expected


def _without_accident(pieces: Sequence[tuple[Floats, float, float]]) -> list[float]:
    """The pieces' seconds; those of an accident are what the next longest would have taken of its parts."""
    seconds = [taken for _, _, taken in pieces]
    if len(pieces) < 2:
        return seconds
    ratios = np.array([taken / expected for _, expected, taken in pieces])
    longest, next_longest = (int(one) for one in np.argsort(-ratios, kind="stable")[:2])
    if ratios[longest] > ACCIDENT * ratios[next_longest]:
        seconds[longest] = float(ratios[next_longest]) * pieces[longest][1]
    return seconds
