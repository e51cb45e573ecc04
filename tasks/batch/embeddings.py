"""`/v1/embeddings`."""

import base64
from collections.abc import Sequence

import numpy as np

from tasks.batch.endpoint import Answered, Asked, BadRequestError, Endpoint, Json, RowAsk, usage
from tasks.batch.parameters import TEXT_PROMPT, check_names, flag, given_of, required, texts_or_tokens, whole_number

_OWN = ("model", "input", "dimensions", "encoding_format", "normalize", "pooling", *TEXT_PROMPT)


class Embeddings(Endpoint):
    url = "/v1/embeddings"
    id_prefix = "embd"

    def read(self, body: Json) -> Asked:
        """A row for each input."""
        check_names(body, _OWN)
        encoding = body.get("encoding_format", "float")
        if encoding not in ("float", "base64"):
            raise BadRequestError(
                "invalid_value", f"encoding_format is float or base64, not {encoding!r:.60}", "encoding_format"
            )
        task: Json = {"type": "embed"}
        dimensions = whole_number(body, "dimensions", 1)
        if dimensions is not None:
            task["dimensions"] = dimensions
        if "normalize" in body:
            task["normalize"] = flag(body, "normalize")
        if "pooling" in body:
            task["pooling"] = body["pooling"]
        own = given_of(body, TEXT_PROMPT)
        inputs = texts_or_tokens(required(body, "input"), "input")
        return Asked(tuple(RowAsk({"input": one} | own, task) for one in inputs), {"encoding_format": encoding})

    def response(self, answered: Answered) -> Json:
        head = answered.head
        in_bytes = answered.reply["encoding_format"] == "base64"
        return {
            "id": head.id,
            "object": "list",
            "created": head.created,
            "model": head.model,
            "data": [
                {"object": "embedding", "index": number, "embedding": _encoded(row["embedding"], in_bytes)}
                for number, row in enumerate(answered.rows)
            ],
            "usage": usage(answered.rows, generates=False),
        }


def _encoded(vector: Sequence[float], in_bytes: bool) -> str | list[float]:
    """Numbers, or the base64 of 32-bit floats, the least byte first."""
    if not in_bytes:
        return list(vector)
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
