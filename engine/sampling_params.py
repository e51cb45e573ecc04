"""How tokens are chosen, in vLLM's field names."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Greedy when `temperature` is 0, else seeded sampling.

    `seed` None draws afresh for each request. `stop` strings end the text before the string;
    `stop_token_ids` end it at the token. `logprobs` asks for that many alternatives per token
    (0: the chosen token alone; None: no log-probabilities).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    max_tokens: int = 16
    min_tokens: int = 0
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0
