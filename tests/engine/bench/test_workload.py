import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.bench.workload import app, read_workload
from engine.config import EngineConfig
from engine.device_rates import DeviceRates
from engine.errors import UserError
from engine.model.model_shape import ModelShape
from engine.planning.cost import CostModel
from engine.planning.planner import make_plan
from kernels.kv_format import FLOAT32

SHAPE = ModelShape(1, 8, 1, 1, 8, 8, 50_000, max_model_len=4096)


def write(folder: Path, *arguments: str) -> Path:
    file = folder / "w.jsonl"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    file.write_text(result.stdout)
    return file


@pytest.mark.parametrize(
    ("arguments", "rows", "written", "shared"),
    [
        ("generate --groups 2 --degree 3 --prefix 20 --distinct 5 --output 7", 6, 150, 70),
        ("choice --groups 2 --degree 3 --prefix 20 --distinct 5 --labels 2 --label-tokens 3", 6, 150, 70),
        ("tree --instruction 10 --documents 2 --document 8 --rows 3 --row 4 --output 1", 6, 132, 50),
    ],
    ids=["generate", "choice", "tree"],
)
def test_prompts_share_what_the_shape_says(
    tmp_path: Path, arguments: str, rows: int, written: int, shared: int
) -> None:
    requests = read_workload(write(tmp_path, *arguments.split()))
    assert len(requests) == rows
    plan = make_plan(requests, EngineConfig(), CostModel(SHAPE, FLOAT32, DeviceRates(1e9, 1e9)))
    assert (plan.summary.prompt_tokens, plan.summary.computed_tokens) == (written, shared)
    if "choice" in arguments:
        assert [[len(label) for label in request.labels or ()] for request in requests] == [[3, 3]] * rows
    else:
        assert {request.params.max_tokens for request in requests} == {7 if "generate" in arguments else 1}


def test_the_same_seed_writes_the_same_lines(tmp_path: Path) -> None:
    arguments = ["generate", "--groups", "1", "--degree", "2", "--prefix", "4", "--distinct", "2", "--output", "1"]
    first = write(tmp_path, *arguments).read_text()
    assert write(tmp_path, *arguments).read_text() == first
    assert write(tmp_path, *arguments, "--seed", "1").read_text() != first


@pytest.mark.parametrize("line", ["[]", "{", json.dumps({"id": "a"})])
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "w.jsonl"
    file.write_text('{"id": "0", "prompt_token_ids": [1]}\n' + line + "\n")
    with pytest.raises(UserError, match=r"w\.jsonl:2: not a workload line"):
        read_workload(file)
