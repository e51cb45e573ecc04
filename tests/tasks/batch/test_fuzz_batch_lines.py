"""Mutations of a batch file: a row, or a fault that says what is wrong with its line; no traceback."""

import gzip
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.errors import UserError
from tasks.batch.request_table import SCHEMA, write_table
from tests.mutations import mutated, seeds

MUTATIONS = 120  # from each seed
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BODIES = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "é"}], "max_tokens": 3, "stop": ["a"]}),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "tools": [TOOL]},
    ),
    ("/v1/completions", {"prompt": ["a", "b"], "temperature": 0.5, "logprobs": 2, "echo": True, "n": 2}),
    ("/v1/completions", {"prompt": [[1, 2], [3]], "seed": 1, "logit_bias": {"5": -1.5}}),
    ("/v1/embeddings", {"input": ["a"], "encoding_format": "base64", "dimensions": 4}),
]


def batch_file() -> bytes:
    lines = [
        {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body | {"model": "tiny"}}
        for number, (url, body) in enumerate(BODIES)
    ]
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


@pytest.mark.parametrize("seed", seeds(5))
def test_no_mutation_ends_in_a_traceback(tmp_path: Path, seed: int) -> None:
    draw, ended = random.Random(seed), {"rows": 0, "faults": 0}
    for number in range(MUTATIONS):
        zipped = number % 8 == 0
        content = mutated(draw, gzip.compress(batch_file(), 1, mtime=0) if zipped else batch_file())
        path = tmp_path / ("in.jsonl.gz" if zipped else "in.jsonl")
        path.write_bytes(content)
        said = _refusal(path, tmp_path / "requests.parquet")
        if said is not None:
            assert said.startswith(str(path))
            assert "\n" not in said
            continue
        table = pq.read_table(tmp_path / "requests.parquet")
        assert table.schema.equals(SCHEMA)
        for row in table.select(["prompt", "fault"]).to_pylist():
            assert (row["prompt"] is None) != (row["fault"] is None)
            ended["rows" if row["fault"] is None else "faults"] += 1
            if row["fault"] is not None:
                fault = json.loads(row["fault"])
                assert fault["message"]
                assert "\n" not in fault["message"]
                assert len(fault["message"]) < 500, fault
    assert min(ended.values()) > 0, ended


def _refusal(source: Path, target: Path) -> str | None:
    """The line that says why no line can be read."""
    try:
        write_table(source, target, {"tiny"})
    except UserError as said:
        return str(said)
    return None
