"""What a prompt token and a generated one cost in seconds, learnt while a run goes on.

On a processor a step that generates takes far longer a token than one that reads a prompt, and a run does first much of
the one and then of the other: one speed for both would promise a quick end before every long tail.
"""

import math

from engine.planning.part_times import PartTimes

# So many readings of both kinds are two thirds believed: what is learnt at once would have the time left jump.
DOUBTED_READINGS = 8


class TokenCosts:
    """Both kinds cost the same until readings tell them apart."""

    def __init__(self) -> None:
        self._times = PartTimes((1.0, 1.0))
        self._seconds = 0.0
        self._tokens = self._prompt_readings = self._decode_readings = 0

    def learn(self, seconds: float, prompt: int, decode: int) -> None:
        """`seconds` computed `prompt` and `decode` tokens."""
        self._times.learn((prompt, decode), seconds)
        self._seconds += seconds
        self._tokens += prompt + decode
        self._prompt_readings += prompt > 0
        self._decode_readings += decode > 0

    def seconds(self, prompt: float, decode: float) -> float | None:
        """How long so many tokens take; None before anything was learnt."""
        if not self._tokens:
            return None
        both = min(self._prompt_readings, self._decode_readings)
        apart = 1 - math.exp(-both / DOUBTED_READINGS)
        alike = self._seconds / self._tokens * (prompt + decode)
        own = self._times.factors().tolist()
        return (1 - apart) * alike + apart * (own[0] * prompt + own[1] * decode)
