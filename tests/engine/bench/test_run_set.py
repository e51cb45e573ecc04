import json
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from engine.bench import run_set
from engine.bench.workload import choice, generate
from engine.config import EngineConfig
from engine.machine.device import resolve_device
from kernels.processor import PROCESSOR

ROOT = Path(__file__).parents[3]
SMALL = {
    "rows": partial(generate, groups=2, degree=3, prefix=40, distinct=5, output=4),
    "labels": partial(choice, groups=1, degree=2, prefix=9, distinct=5, labels=3, label_tokens=2),
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(run_set, "WORKLOADS", SMALL)
    monkeypatch.setattr(sys, "argv", ["run_set", *arguments])
    try:
        run_set.main()
    except SystemExit as end:
        if end.code:
            raise


def test_a_table_and_then_json(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    precisions = ["--precision", "float32", "--precision", "int8"]
    run(monkeypatch, "--model", str(tiny_model), "--kv-gib", "0.01", *precisions)
    device, gap, *table, last = capsys.readouterr().out.splitlines()
    assert (device, gap) == (resolve_device(EngineConfig(device="cpu")).described, "")
    assert device.endswith(f", {PROCESSOR}")
    assert [line.split("|")[1].strip() for line in table] == ["workload", "---", *SMALL]
    assert table[0] == "| workload | float32 | int8 |"
    reports = json.loads(last)
    assert [(one["precision"], one["workload"]) for one in reports] == [
        (precision, name) for precision in ("float32", "int8") for name in SMALL
    ]
    for one in reports:
        # Only what each workload itself computed: two prefixes of 40 and six prompts' 5; a prefix of 9 and two of 5.
        assert one["computed_prompt_tokens"] == {"rows": 110, "labels": 19}[one["workload"]]
        assert one["generated_tokens"] == {"rows": 24, "labels": 0}[one["workload"]]
        assert one["ceiling_fraction"] > 0


def test_an_unknown_precision_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "--precision", "int2")
    assert end.value.code == 2
    assert "--precision: 'int2' is not one of float32, bfloat16, int8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "module"), [("make bench", "engine.bench.run_set"), ("make bench-peers", "examples.peers")]
)
def test_the_makefile_runs_it(command: str, module: str) -> None:
    quiet = [*shlex.split(command), "--dry-run", "--assume-old", ".venv/.installed"]
    done = subprocess.run(quiet, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"-m {module}" in done.stdout
