"""Mutations of a batch file: a row, or a fault that says what is wrong with its line; no traceback."""

import gzip
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine.errors import UserError
from tasks.batch.batch_line import BatchLine, parse_line
from tasks.batch.endpoint import BadRequestError
from tasks.batch.line_file import read_lines
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
    """Each line is parsed; of each twelfth file the table is written."""
    draw, ended = random.Random(seed), {"rows": 0, "faults": 0}
    for number in range(MUTATIONS):
        zipped = number % 8 == 0
        path = tmp_path / ("in.jsonl.gz" if zipped else "in.jsonl")
        path.write_bytes(mutated(draw, gzip.compress(batch_file(), 1, mtime=0) if zipped else batch_file()))
        lines, said = _read(path)
        assert said is None or (said.startswith(str(path)) and "\n" not in said), said
        faults = [str(line.asked) for line in lines if isinstance(line.asked, BadRequestError)]
        assert all(0 < len(fault) < 500 and "\n" not in fault for fault in faults), faults
        ended["faults"] += len(faults)
        ended["rows"] += len(lines) - len(faults)
        if number % 12 == 0 and said is None and lines:
            write_table(path, tmp_path / "requests.parquet", {"tiny"})
            table = pq.read_table(tmp_path / "requests.parquet")
            assert table.schema.equals(SCHEMA)
            assert set(table["line"].to_pylist()) == {line.number for line in lines}
            given = zip(table["prompt"].is_valid().to_pylist(), table["fault"].is_valid().to_pylist(), strict=True)
            assert all(prompt != fault for prompt, fault in given)
    assert min(ended.values()) > 0, ended


def _read(path: Path) -> tuple[list[BatchLine], str | None]:
    """The file's lines, or those before the one line that says why no more can be read."""
    lines: list[BatchLine] = []
    try:
        for number, line in read_lines(path):
            assert line is not None
            lines.append(parse_line(number, line, {"tiny"}))
    except UserError as said:
        return lines, str(said)
    return lines, None
