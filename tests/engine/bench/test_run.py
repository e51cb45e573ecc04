import json
import sys
from pathlib import Path

import pytest

from engine.bench import run as bench
from engine.loop.trace import read_trace
from kernels.processor import PROCESSOR
from tests.engine.bench.test_workload import write

KEYS = {
    "seconds",
    "load_seconds",
    "rows",
    "prompt_tokens",
    "generated_tokens",
    "computed_prompt_tokens",
    "saved_fraction",
    "ideal_saved_fraction",
    "peak_kv_bytes",
    "peak_rss_bytes",
    "other_rss_bytes",
    "matmul_flops_per_second",
    "ceiling_fraction",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "determinism",
    "device",
    "version",
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    try:
        bench.main()
    except SystemExit as end:
        if end.code:
            raise


def test_the_last_line_is_the_report(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    shape = ["--groups", "2", "--degree", "3", "--prefix", "40", "--distinct", "5"]
    workload = write(tmp_path, "generate", *shape, "--output", "4")
    answers, trace = tmp_path / "answers.json", tmp_path / "trace.jsonl"
    written = ["--outputs", str(answers), "--trace", str(trace)]
    run(monkeypatch, str(workload), "--model", str(tiny_model), "--kv-gib", "0.01", *written)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report.keys() >= KEYS
    assert (report["rows"], report["prompt_tokens"], report["computed_prompt_tokens"]) == (6, 270, 110)
    assert report["generated_tokens"] == 24
    assert report["device"].endswith(f", {PROCESSOR}")
    assert report["saved_fraction"] == report["ideal_saved_fraction"] == pytest.approx(160 / 270, abs=1e-4)
    assert 0 < report["peak_kv_bytes"] <= 0.01 * 2**30
    assert 0 < report["ceiling_fraction"] < 1
    assert report["matmul_flops_per_second"] > 1e8
    assert 0 < report["other_rss_bytes"] < report["peak_rss_bytes"]
    assert len(read_trace(trace)) == report["steps"]
    assert not [one for one in recwarn if trace.name in str(one.message)], "its file is not closed"
    tokens = json.loads(answers.read_text())
    assert sorted(map(int, tokens)) == list(range(6))
    assert all(len(ids) == 4 for ids in tokens.values())


def test_continuations_give_logprob_and_greediness(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ["--groups", "1", "--degree", "2", "--prefix", "9", "--distinct", "5"]
    workload = write(tmp_path, "choice", *shape, "--labels", "3", "--label-tokens", "2")
    answers = tmp_path / "answers.json"
    options = ["--model", str(tiny_model), "--kv-gib", "0.01", "--sharing", "none", "--outputs", str(answers)]
    run(monkeypatch, str(workload), *options)
    scores = json.loads(answers.read_text())
    assert [len(labels) for labels in scores.values()] == [3, 3]
    assert all(logprob < 0 and greedy in (True, False) for labels in scores.values() for logprob, greedy in labels)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--quantization", "int2"),
        ("--kv-cache-dtype", "int4"),
        ("--sharing", "lru"),
        ("--dtype", "fp8"),
        ("--order", "random"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, str(tmp_path / "w.jsonl"), option, value)
    assert end.value.code == 2
    assert f"{option}: '{value}' is not built" in capsys.readouterr().err
