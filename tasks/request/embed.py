"""`embed`: the prompt as one vector, its hidden states behind the model's last norm, pooled."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.pooling_params import PoolingParams
from engine.request import Request, RequestOutput
from tasks.job.task import Task
from tasks.request.ask import Ask
from tasks.request.prompt_text import RenderedPrompt
from tasks.request.task_type import Moved, RowReader, RowRequest, Shown, TaskType
from tasks.source.row_error import RowError
from tasks.source.source_rows import SourceBatch


class Embed(TaskType):
    name = "embed"
    shown = Shown("embedding_counts", ("dimensions", "rows"))

    def read(
        self, reader: RowReader, batch: SourceBatch, prompts: Sequence[RenderedPrompt], asks: Sequence[Ask]
    ) -> list[RowRequest | RowError]:
        del batch, asks
        encoded = reader.encoder.encode_prompts(prompts)
        return [ids if isinstance(ids, RowError) else RowRequest(ids) for ids in encoded]

    def decisive(self, ask: Ask) -> object:
        return asdict(pooling_of(ask.task))

    def asks_once(self, ask: Ask) -> bool:
        del ask
        return True

    def requests(self, request_id: str, asked: RowRequest, ask: Ask) -> tuple[Request, ...]:
        return (Request(request_id, asked.prompt_token_ids, labels=(), pooling=pooling_of(ask.task)),)

    def result(self, ask: Ask, label_texts: Sequence[str], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        del ask, label_texts
        (output,) = outputs
        return {"embedding": output.embedding}

    def compare(self, pairs: Sequence[tuple[RequestOutput, RequestOutput]]) -> Moved:
        """Cosine distances, 1 minus the cosine of the angle between two vectors."""
        distances = [1 - _cosine(before, after) for before, after in pairs]
        return Moved(np.array(distances, np.float64), {}, "cosine distance")


def pooling_of(task: Task) -> PoolingParams:
    return PoolingParams(task.pooling, task.normalize, task.dimensions)


def _cosine(before: RequestOutput, after: RequestOutput) -> float:
    one, other = (_vector(output) for output in (before, after))
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    # Two vectors of nothing are the same.
    return float(one @ other) / lengths if lengths else float((one == other).all())


def _vector(output: RequestOutput) -> NDArray[np.float64]:
    assert output.embedding is not None, output.request_id
    return output.embedding.astype(np.float64)
