"""The texts that a row was answered with."""

import json
from collections.abc import Mapping
from typing import Any

from tasks.batch.endpoint import Json

_FIELDS = ("text", "reasoning", "finish_reason", "logprobs")


def outputs_of(row: Mapping[str, Any]) -> list[Json]:
    """In the order in which they were drawn: `text`, `reasoning`, `finish_reason`, and `logprobs` token by token."""
    drawn = row.get("outputs") or [{**row, "index": 0, "text": row["generated_text"]}]
    in_order = sorted(drawn, key=lambda output: int(output["index"]))
    found = [{name: output.get(name) for name in _FIELDS} for output in in_order]
    return [one | {"text": one["text"] or "", "logprobs": json.loads(one["logprobs"] or "null")} for one in found]
