"""Which part of some work takes how long, learnt from pieces of it whose time is known as a whole."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# That all parts are as far from what is expected counts as so many pieces.
DOUBTED_PIECES = 2.0


class PartTimes:
    """A piece takes what its parts are, each times a factor of its own.

    Least squares over the pieces so far, no factor below 0. A piece weighs one over its expected time: the error of a
    sum over pieces is what counts, and it grows with their time. Until much is learnt, all parts are as far from what
    is expected as all pieces are.
    """

    def __init__(self, expected: Sequence[float]) -> None:
        """The factors before anything is learnt, of which only the proportions count later."""
        self._factors = np.array(expected, dtype=np.float64)
        self._squares = np.zeros((len(expected), len(expected)))
        self._products = np.zeros(len(expected))
        self._seconds = self._expected = 0.0
        self.num_pieces = 0

    def learn(self, parts: Sequence[float], seconds: float) -> None:
        """A piece of these `parts` took so long."""
        each = np.array(parts, dtype=np.float64)
        expected = max(float(self._factors @ each), 1e-9)
        weight = 1.0 / expected
        self._squares += weight * np.outer(each, each)
        self._products += weight * seconds * each
        self._seconds += seconds
        self._expected += expected
        self.num_pieces += 1

    def factors(self) -> NDArray[np.float64]:
        """One for each part."""
        alike = (self._seconds / self._expected if self.num_pieces else 1.0) * self._factors
        doubt = DOUBTED_PIECES * np.diag(self._squares) / max(self.num_pieces, 1)
        squares = self._squares + np.diag(doubt)
        products = self._products + doubt * alike
        factors = alike.copy()
        free = np.diag(squares) > 0
        while free.any():
            factors[free] = np.linalg.lstsq(squares[np.ix_(free, free)], products[free], rcond=None)[0]
            lowest = int(np.argmin(np.where(free, factors, 0.0)))
            if factors[lowest] >= 0:
                break
            factors[lowest], free[lowest] = 0.0, False
        return factors
