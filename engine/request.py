"""What goes into the engine and what comes out: one `RequestOutput` a `Request`, each once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.pooling_params import PoolingParams
from engine.sampling_params import SamplingParams

TokenIds = NDArray[np.int32]

GREEDY = SamplingParams()


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A prompt and what is asked of it.

    `labels` None asks for text (`params` says how); else each label is a continuation of at least one
    token, and the log-likelihood of every one is asked; an empty tuple asks for nothing behind the prompt. `adapter`
    names the weights that the model runs with, None its own alone: equal tokens under two adapters have nothing in
    common. `prompt_logprobs_from` asks, besides, for the log-probability of each prompt token from that one on: 1 at
    least, as the first token follows nothing; `params.prompt_logprobs` says with how many alternatives. `pooling` asks
    for the prompt's embedding and for nothing behind it.
    """

    request_id: str
    prompt_token_ids: TokenIds
    params: SamplingParams = GREEDY
    labels: tuple[TokenIds, ...] | None = None
    adapter: str | None = None
    prompt_logprobs_from: int | None = None
    pooling: PoolingParams | None = None

    def __post_init__(self) -> None:
        assert self.prompt_logprobs_from is None or self.prompt_logprobs_from > 0, self.prompt_logprobs_from
        assert self.pooling is None or self.labels == (), self.request_id

    @property
    def max_tokens(self) -> int:
        """Tokens that this request may decode: none when labels are scored."""
        return 0 if self.labels is not None else self.params.max_tokens

    @property
    def num_prompt_alternatives(self) -> int:
        """The best tokens that are asked at the place of each prompt token whose log-probability is."""
        return self.params.prompt_logprobs or 0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One generated token's log-probability and its best alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class PromptLogprobs:
    """Of each prompt token from `first` on: its log-probability behind those before it, and whether it is the best.

    `top_tokens` and `top_logprobs` (tokens, alternatives) have the best tokens at its place, best first.
    """

    first: int
    token_ids: TokenIds
    logprobs: NDArray[np.float32]
    is_greedy: NDArray[np.bool_]
    top_tokens: TokenIds
    top_logprobs: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label's summed log-likelihood, and whether greedy decoding would have produced it."""

    logprob: float
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A request's end: text, label scores, an embedding (dimensions,), or an error with a type and a message.

    `finish_reason` is `stop`, `length`, `scored` or `error`. `num_cached_tokens` counts the prompt tokens
    that another request had already paid for. `min_margin` is how near the output was to being another: in logits, the
    least by which a token of the text was ahead of the next best one, or what the greedy flag of its one label hung on.
    None where nothing was chosen.
    """

    request_id: str
    finish_reason: str
    prompt_tokens: int
    token_ids: tuple[int, ...] = ()
    text: str | None = None
    cumulative_logprob: float | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    label_scores: tuple[LabelScore, ...] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    embedding: NDArray[np.float32] | None = None
    num_cached_tokens: int = 0
    min_margin: float | None = None
    error_type: str | None = None
    error_message: str | None = None
