"""A request's name: a digest of everything that decides its answer, so that equal requests are scored once."""

import hashlib
import json
from collections.abc import Sequence

from engine.request import TokenIds
from tasks.storage.run import FORMAT, Run


class RequestHasher:
    """Model weights, dtype, quantization, task and sampling parameters are the same for all requests of a run."""

    def __init__(self, run: Run) -> None:
        job = run.job
        sampling = job.sampling.decisive() if job.task.type == "generate" else None
        precision = [run.device.dtype, job.model.quantization]
        decisive = [FORMAT, run.model.fingerprint, *precision, job.task.type, sampling]
        self._base = hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=16)
        # Draws without a seed differ from row to row, so such rows are never one request.
        self._by_row = job.task.type == "generate" and job.sampling.temperature > 0 and job.sampling.seed is None

    def __call__(
        self, prompt: TokenIds, max_tokens: int, custom_id: str, labels: Sequence[TokenIds], texts: Sequence[str]
    ) -> str:
        digest = self._base.copy()
        pieces = [prompt.tobytes(), *(ids.tobytes() for ids in labels), *(text.encode() for text in texts)]
        row = [custom_id.encode()] if self._by_row else []
        layout = [max_tokens, len(labels), *map(len, pieces)]
        digest.update(repr(layout).encode())
        for piece in pieces + row:
            digest.update(piece)
        return digest.hexdigest()
