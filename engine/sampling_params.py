"""How tokens are chosen, in vLLM's field names."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StructuredOutputs:
    """What a text has to be: exactly one of these, in vLLM's names.

    `json` is a JSON schema, as JSON text; `json_object` asks for any JSON object; `regex` is matched by the whole text;
    `choice` is a list of texts; `grammar` is a context-free grammar, in Lark's or GBNF's notation.
    """

    json: str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = (self.json, self.json_object or None, self.regex, self.choice, self.grammar)
        assert sum(value is not None for value in given) == 1, given


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Greedy when `temperature` is 0, else seeded sampling.

    `seed` None draws afresh for each request. `stop` strings end the text before the string, or behind it with
    `include_stop_str_in_output`; `stop_token_ids` end it at the token. `logprobs` asks for that many alternatives per
    token (0: the chosen token alone; None: no log-probabilities); they are the model's own, before any other parameter.
    `prompt_logprobs` asks the same of the prompt's tokens.

    `min_p` leaves tokens of at least that share of the likeliest one's probability. `repetition_penalty` divides
    positive logits of tokens in prompt or text (and multiplies others); `frequency_penalty` is subtracted for each time
    that a token is in the text, `presence_penalty` once. `logit_bias` is added, token by token; `allowed_token_ids`, if
    given, are the only ones; `bad_words` are texts that may not come to be. `structured_outputs` bars what its grammar
    does not allow, and ends the text where the grammar does; the model's end and `stop_token_ids` are barred before.
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
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalises(self) -> bool:
        """Whether a token's logit depends on which tokens are there already."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed before a token is chosen, besides barring ends from short texts."""
        return self.structured_outputs is not None or self.changes_logits_besides

    @property
    def changes_logits_besides(self) -> bool:
        """Whether they are changed by anything but a grammar."""
        bars = self.bad_words or self.allowed_token_ids is not None
        return bool(bars or self.logit_bias or self.penalises)
