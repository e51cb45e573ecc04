"""A request's name: a digest of everything that decides its answer, so that equal requests are scored once."""

import hashlib
import json

from tasks.request.task_type import RowRequest
from tasks.request.task_types import task_type_of
from tasks.storage.run import FORMAT, Run


class RequestHasher:
    """Model weights, precisions and what the task type calls decisive are the same for a run's requests."""

    def __init__(self, run: Run) -> None:
        task_type = task_type_of(run.job)
        model = run.job.model
        precision = [run.device.dtype, model.quantization]
        if model.kv_cache_dtype != "auto":
            precision.append(f"kv {model.kv_cache_dtype}")
        decisive = [FORMAT, run.model.fingerprint, *precision, task_type.name, task_type.decisive(run.job)]
        self._base = hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=16)
        self._by_row = task_type.is_drawn_afresh(run.job)

    def __call__(self, request: RowRequest, custom_id: str) -> str:
        digest = self._base.copy()
        pieces = [
            request.prompt_token_ids.tobytes(),
            *(ids.tobytes() for ids in request.labels),
            *(text.encode() for text in request.label_texts),
        ]
        row = [custom_id.encode()] if self._by_row else []
        layout: list[int | str] = [request.max_tokens, len(request.labels), *map(len, pieces)]
        if request.adapter is not None:
            layout.append(request.adapter)
        digest.update(repr(layout).encode())
        for piece in pieces + row:
            digest.update(piece)
        return digest.hexdigest()
