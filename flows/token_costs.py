"""What a prompt token, a generated one and a step cost in seconds, learnt while a run goes on.

On a processor a step that generates takes far longer a token than one that reads a prompt, and a run does first much of
the one and then of the other: one speed for both would promise a quick end before every long tail. Steps themselves
cost what all rows wait for, as the reading of the weights is: at the end of a run few rows are left to share it.
"""

import math

import numpy as np

from engine.planning.cost import Prices
from engine.planning.part_times import PartTimes

# So many readings of both kinds are two thirds believed: what is learnt at once would have the time left jump.
DOUBTED_READINGS = 8


class TokenCosts:
    """In the proportions of `prices` until readings of both kinds tell them apart."""

    def __init__(self, prices: Prices) -> None:
        self._prices = np.array([prices.prompt_token, prices.decode_token, prices.step])
        self._times = PartTimes(self._prices)
        self._as_expected = PartTimes((1.0,))
        self._prompt_readings = self._decode_readings = 0

    @property
    def num_readings(self) -> int:
        return self._times.num_pieces

    def learn(self, seconds: float, prompt: int, decode: int, steps: int) -> None:
        """`seconds` computed `prompt` and `decode` tokens in so many steps."""
        parts = np.array([prompt, decode, steps], dtype=np.float64)
        self._times.learn(parts, seconds)
        self._as_expected.learn((float(self._prices @ parts),), seconds)
        self._prompt_readings += prompt > 0
        self._decode_readings += decode > 0

    def seconds(self, prompt: float, decode: float, steps: float) -> float | None:
        """How long so much takes; None before anything was learnt."""
        if not self.num_readings:
            return None
        parts = np.array([prompt, decode, steps], dtype=np.float64)
        apart = 1 - math.exp(-min(self._prompt_readings, self._decode_readings) / DOUBTED_READINGS)
        expected = float(self._as_expected.factors()[0]) * float(self._prices @ parts)
        return (1 - apart) * expected + apart * float(self._times.factors() @ parts)
