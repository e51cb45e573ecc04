"""A request's name: a digest of everything that decides its answer, so that equal requests are scored once."""

import hashlib
import json

from engine.model.adapter_files import fingerprint_in
from tasks.request.ask import Ask
from tasks.request.task_type import RowRequest, TaskType
from tasks.request.task_types import task_type_of
from tasks.storage.run import Run

Digest = hashlib.blake2b

_KEPT_BASES = 4096


class RequestHasher:
    """`Run.decisive` is the same for a run's requests; what a task type calls decisive, for an ask."""

    def __init__(self, run: Run) -> None:
        self._decisive = run.decisive
        self._bases: dict[str, Digest] = {}

    def __call__(self, request: RowRequest, ask: Ask, custom_id: str) -> str:
        task_type = task_type_of(ask.task)
        digest = self._base(task_type, ask).copy()
        pieces = [
            request.prompt_token_ids.tobytes(),
            *(ids.tobytes() for ids in request.labels),
            *(text.encode() for text in request.label_texts),
        ]
        row = [custom_id.encode()] if task_type.is_drawn_afresh(ask) else []
        layout: list[int | str] = [request.max_tokens, len(request.labels), *map(len, pieces)]
        if request.adapter is not None:
            layout.append(fingerprint_in(request.adapter))  # wherever its folder lies
        digest.update(repr(layout).encode())
        for piece in pieces + row:
            digest.update(piece)
        return digest.hexdigest()

    def _base(self, task_type: TaskType, ask: Ask) -> "Digest":
        if ask.text not in self._bases:
            if len(self._bases) > _KEPT_BASES:
                self._bases.clear()
            decisive = [*self._decisive, task_type.name, task_type.decisive(ask)]
            self._bases[ask.text] = hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=16)
        return self._bases[ask.text]
