"""What a prompt token and a generated one cost in seconds, learnt while a run goes on.

On a processor a step that generates takes far longer a token than one that reads a prompt, and a run does first much of
the one and then of the other: one speed for both would promise a quick end before every long tail.
"""

from dataclasses import dataclass

# Until so many readings have seen a kind of token, it is taken to cost what the other does.
DOUBTED_READINGS = 3


@dataclass(slots=True)
class TokenCosts:
    """Least squares of seconds = a * prompt tokens + b * generated tokens, over the readings that had tokens."""

    _seconds: float = 0.0
    _tokens: int = 0
    _prompt: float = 0.0
    _decode: float = 0.0
    _both: float = 0.0
    _prompt_seconds: float = 0.0
    _decode_seconds: float = 0.0
    _prompt_readings: int = 0
    _decode_readings: int = 0

    def learn(self, seconds: float, prompt: int, decode: int) -> None:
        """`seconds` computed `prompt` and `decode` tokens."""
        self._seconds += seconds
        self._tokens += prompt + decode
        self._prompt += prompt * prompt
        self._decode += decode * decode
        self._both += prompt * decode
        self._prompt_seconds += prompt * seconds
        self._decode_seconds += decode * seconds
        self._prompt_readings += prompt > 0
        self._decode_readings += decode > 0

    def seconds(self, prompt: int, decode: int) -> float | None:
        """How long so many tokens take; None before anything was learnt."""
        if not self._tokens:
            return None
        a, b = self._costs()
        return a * prompt + b * decode

    def _costs(self) -> tuple[float, float]:
        alike = self._seconds / self._tokens
        if not self._prompt_readings or not self._decode_readings:
            return alike, alike
        # As if a few readings had said that both cost the same.
        doubt = DOUBTED_READINGS * min(self._prompt / self._prompt_readings, self._decode / self._decode_readings)
        prompt, decode, both = self._prompt + doubt, self._decode + doubt, self._both - doubt
        determinant = prompt * decode - both * both
        a = (self._prompt_seconds * decode - self._decode_seconds * both) / determinant if determinant else 0.0
        b = (self._decode_seconds * prompt - self._prompt_seconds * both) / determinant if determinant else 0.0
        return (a, b) if min(a, b) > 0 else (alike, alike)
