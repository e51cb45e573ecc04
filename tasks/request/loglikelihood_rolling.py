"""`loglikelihood_rolling`: how likely a text is as a whole, in windows of the model's context."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.request import Request, RequestOutput, TokenIds
from tasks.request.ask import Ask
from tasks.request.prompt_text import RenderedPrompt
from tasks.request.rolling_windows import rolling_windows
from tasks.request.task_type import Moved, RowReader, RowRequest, Shown, TaskType, nth_id, tokens_of
from tasks.source.row_error import BAD_TASK, CONTEXT_OVERFLOW, EMPTY_PROMPT, RowError
from tasks.source.source_rows import SourceBatch


class LoglikelihoodRolling(TaskType):
    """The text is scored behind a prefix token, window by window: lm-evaluation-harness's request of this name.

    A row's prompt is what the first window reads; its one label is the rest of the text, whose first token that window
    looks up.
    """

    name = "loglikelihood_rolling"
    shown = Shown("perplexity_range", ("perplexity", "value"))

    def read(
        self, reader: RowReader, batch: SourceBatch, prompts: Sequence[RenderedPrompt], asks: Sequence[Ask]
    ) -> list[RowRequest | RowError]:
        del batch
        context_len = asks[0].task.context_len
        if context_len > reader.max_model_len:
            said = f"task.context_len: {context_len} is more than the context that the model has"
            return [RowError(BAD_TASK, said)] * len(prompts)
        encoded = reader.encoder.encode_texts(prompts)
        return [ids if isinstance(ids, RowError) else _windowed(ids, reader) for ids in encoded]

    def decisive(self, ask: Ask) -> object:
        return ask.task.context_len

    def requests(self, request_id: str, asked: RowRequest, ask: Ask) -> tuple[Request, ...]:
        """A window reads its tokens but the last, which is looked up: that one may be one more than the context."""
        tokens = np.concatenate((asked.prompt_token_ids, *asked.labels))
        window = len(asked.prompt_token_ids)
        windows = rolling_windows(tokens, window, min(ask.task.context_len, window))
        return tuple(
            Request(
                nth_id(request_id, place),
                np.concatenate((window.context, window.scored[:-1])),
                labels=(window.scored[-1:],),
                prompt_logprobs_from=len(window.context),
            )
            for place, window in enumerate(windows)
        )

    def result(self, ask: Ask, label_texts: Sequence[str], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """`logprob` is lm-eval's number; `perplexity` is a token's."""
        del ask, label_texts
        logprobs = np.concatenate([_logprobs(output) for output in outputs])
        return {"logprob": float(logprobs.sum()), "perplexity": math.exp(-logprobs.mean())} | tokens_of(outputs)

    def compare(self, pairs: Sequence[tuple[RequestOutput, RequestOutput]]) -> Moved:
        """Token by token."""
        reads = [(_logprobs(before), _logprobs(after)) for before, after in pairs]
        return Moved(np.concatenate([np.abs(before - after) for before, after in reads]), {})


def _windowed(token_ids: TokenIds, reader: RowReader) -> RowRequest | RowError:
    """The text behind its prefix, which is read and not scored."""
    prefix = reader.encoder.prefix_token_id
    if prefix is None:
        return RowError(EMPTY_PROMPT, "the model has neither a BOS nor an EOS token to score a text behind")
    window = min(len(token_ids), reader.max_model_len)
    if window > reader.max_tokens:
        said = (
            f"a window has {window} tokens, the KV cache holds {reader.max_tokens}; take a lower engine.max_model_len"
        )
        return RowError(CONTEXT_OVERFLOW, said)
    tokens = np.concatenate(([prefix], token_ids)).astype(np.int32)
    return RowRequest(tokens[:window], labels=(tokens[window:],))


def _logprobs(output: RequestOutput) -> NDArray[np.float64]:
    """Of each token that a window scores."""
    assert output.prompt_logprobs is not None, output.request_id
    assert output.label_scores is not None, output.request_id
    (last,) = output.label_scores
    return np.append(output.prompt_logprobs.logprobs, last.logprob).astype(np.float64)
