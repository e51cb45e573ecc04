"""Mutations of good job files: each is a job, or lines that say what is wrong; none is a traceback."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import UserError
from tasks.job.job_file import load_job
from tests.mutations import seeds

MUTATIONS = 200  # from each seed
LONGEST_LINE = 1000

EXAMPLES = Path(__file__).parents[3] / "examples"
ALL_KEYS = """
name: all
source:
  duckdb: {database: a.duckdb, query: "select * from t"}
  id: row_id
  keep: {label: truth, other: second}
prompt: {messages: dialogue}
task: {type: generate}
model: {path: models/some, dtype: bfloat16, quantization: int8}
sampling:
  {temperature: 0.5, top_p: 0.9, top_k: 40, seed: 7, stop: ["\\n"], stop_token_ids: [2], max_tokens: 8, logprobs: 1}
engine: {kv_cache_memory: 1.5GiB, max_num_batched_tokens: auto, max_model_len: 512, device: cuda:0}
shard_seconds: 30
output: runs/all
"""
SEEDS = [*(path.read_text() for path in sorted(EXAMPLES.glob("*.yaml"))), ALL_KEYS]

# What a value may be, and should not.
VALUES = (
    "",
    "null",
    "~",
    "true",
    "[]",
    "{}",
    "[[[]]]",
    "{a: {b: [1, {c: d}]}}",
    "-1",
    "1e999",
    ".nan",
    "9" * 5000,
    "0x" + "f" * 400,
    "a" * 100_000,
    "/" + "a/" * 3000,
    "~nobody/x",
    '"\\0"',
    '"\\uD800"',
    "\N{PILE OF POO}",
    "2026-13-45",
    "12:99:99",
    "!!python/object/apply:os.system [id]",
    "!!binary '*'",
    "!!int ''",
    "!!float x",
    "!!timestamp x",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!pairs x",
    "!other x",
    "*nowhere",
    "&a [*a]",
    "&a {b: *a}",
    "[" * 400,
    "{a: " * 300,
    "{[1, 2]: x}",
    "{{a: b}: c}",
    "? x",
    "<<: 3",
    "{<<: [1]}",
    "{<<: &m {<<: *m}}",
    "|",
    "'",
    "%",
    "@",
    "\t",
    "***",
    "{{ package }}",
    "{% for x in range(9) %}",
)
# Each is ten of the one before: a document of a few lines that would be longer than a disk.
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))

Mutation = Callable[[random.Random, str], bytes]


def bytes_changed(draw: random.Random, text: str) -> bytes:
    content = bytearray(text.encode())
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content)


def piece_lost_or_twice(draw: random.Random, text: str) -> bytes:
    first, last = sorted(draw.choices(range(len(text)), k=2))
    return (text[:first] + text[first:last] * draw.choice([0, 2]) + text[last:]).encode()


def value_replaced(draw: random.Random, text: str) -> bytes:
    values = list(re.finditer(r"(?<=: )[^\s{\[,}\]][^\n,}\]]*", text))
    chosen = draw.choice(values)
    return (text[: chosen.start()] + draw.choice(VALUES) + text[chosen.end() :]).encode()


def key_replaced(draw: random.Random, text: str) -> bytes:
    chosen = draw.choice(list(re.finditer(r"\b[a-z_]+(?=:)", text)))
    name = draw.choice([*VALUES, "name", "source", "task", chosen[0] + "s", chosen[0][1:]])
    return (text[: chosen.start()] + name + text[chosen.end() :]).encode()


def line_added(draw: random.Random, text: str) -> bytes:
    lines = text.splitlines()
    indent = "  " * draw.randint(0, 2)
    lines.insert(draw.randrange(len(lines) + 1), f"{indent}{draw.choice(['name', 'x', '- '])}: {draw.choice(VALUES)}")
    return "\n".join(lines).encode()


def lines_moved(draw: random.Random, text: str) -> bytes:
    lines = text.splitlines()
    draw.shuffle(lines)
    return "\n".join(lines).encode()


def laughs_added(draw: random.Random, text: str) -> bytes:
    key = draw.choice(["name", "labels", "output", "x"])
    return f"{LAUGHS}{key}: *a11\n{text}".encode()


FREQUENT: tuple[Mutation, ...] = (bytes_changed, piece_lost_or_twice, value_replaced, key_replaced, line_added)
KINDS = (*FREQUENT * 4, lines_moved, laughs_added)


@pytest.mark.parametrize("seed", seeds(5))
def test_no_mutation_ends_in_a_traceback(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = tmp_path / "job.yaml"
    refused = 0
    for _ in range(MUTATIONS):
        path.write_bytes(draw.choice(KINDS)(draw, draw.choice(SEEDS)))
        try:
            load_job(path)
        except UserError as said:
            lines = str(said).splitlines()
            refused += 1
            assert lines, path.read_bytes()
            assert all(line.startswith(str(path)) and len(line) < LONGEST_LINE for line in lines), lines
    assert refused > MUTATIONS / 4
