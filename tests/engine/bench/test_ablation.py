import shlex
import sys
from functools import partial
from pathlib import Path

import pytest

from engine.bench import ablation
from engine.bench.ablation import Timed, combinations, markdown, switched_off
from engine.bench.workload import generate
from engine.config import EngineConfig
from tests.engine.bench.test_workload import write


def test_every_combination_once() -> None:
    configs = combinations(EngineConfig())
    assert len(set(configs)) == len(configs) == 16
    assert EngineConfig(sharing="batchllm", order="ratio", admission="memory") in configs


def test_the_default_sets_switch_each_policy_off_alone() -> None:
    ours, *others = switched_off(EngineConfig(dtype="float32"))
    assert ours == EngineConfig(dtype="float32", sharing="multi_level", order="ratio", admission="memory")
    names = ("sharing", "order", "admission")
    changed = [{name for name in names if getattr(one, name) != getattr(ours, name)} for one in others]
    alone = [next(iter(change)) for change in changed if len(change) == 1]
    assert set(alone) == set(names)
    assert set(names) in changed
    assert EngineConfig(dtype="float32", sharing="batchllm", order="ratio", admission="memory") in others


def test_the_table_gives_the_median_and_the_spread() -> None:
    config = EngineConfig(sharing="batchllm", order="fcfs", admission="count")
    runs = [Timed(3.0, 1200, 2**20), Timed(1.0, 1200, 3 * 2**20), Timed(1.5, 1200, 2**20)]
    last = markdown([config], [runs]).splitlines()[-1]
    assert last == "| batchllm | fcfs | count | 1.50 (1.00-3.00) | 1,200 | 3.0 |"


def test_sharing_computes_less(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--groups", "2", "--degree", "3", "--prefix", "40", "--distinct", "5"]
    workload = write(tmp_path, "generate", *shape, "--output", "2")
    ablation.ablation([workload], str(tiny_model), 0.01, every=True)
    device, _, heading, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert device.startswith("cpu (")
    assert heading == "w, float32"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert len(rows) == 16
    computed = {(sharing, int(tokens)) for sharing, _, _, _, tokens, _ in rows}
    # The paper's rules share whole blocks of 16 tokens: 32 of a prefix of 40.
    assert computed == {("none", 270), ("batchllm", 2 * 32 + 6 * 13), ("single_level", 110), ("multi_level", 110)}


def test_without_a_file_the_small_set_runs_and_is_summed_up(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {name: partial(generate, groups=2, degree=2, prefix=20, distinct=3, output=1) for name in ("one", "two")}
    monkeypatch.setattr(ablation, "WORKLOADS", small)
    command = "python -m engine.bench.ablation --rounds 3 --precision bfloat16"
    monkeypatch.setattr(sys, "argv", [*shlex.split(command)[2:], "--model", str(tiny_model), "--kv-gib", "0.01"])
    with pytest.raises(SystemExit) as end:
        ablation.main()
    assert not end.value.code
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line for line in lines if line.endswith(", bfloat16")] == ["one, bfloat16", "two, bfloat16"]
    last = lines[-len(switched_off(EngineConfig())) - 2 :]
    assert last[0] == "| sharing | order | admission | one | two |"
    assert last[2].startswith("| multi_level | ratio | memory | ")
