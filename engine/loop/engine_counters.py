"""What an engine did since it was made."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Totals since the engine was made; `kv_bytes` are in use, `going` the tokens of texts now.

    `accepted_tokens` of `draft_tokens` were right; texts gave way to others `preemptions` times. Steps took
    `busy_seconds`; at the device's limit, `limit_seconds`.
    """

    finished_requests: int = 0
    computed_prompt_tokens: int = 0
    label_tokens: int = 0
    generated_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    kv_bytes: int = 0
    peak_kv_bytes: int = 0
    busy_seconds: float = 0.0
    limit_seconds: float = 0.0
    going: tuple[int, ...] = ()
