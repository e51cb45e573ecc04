"""The trace says what the scheduler's steps held; the plot shows each of them."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.bench import plot_trace
from engine.config import EngineConfig
from engine.errors import UserError
from engine.loop.batch import plan_requests, run_plan
from engine.loop.build import build_engine
from engine.loop.trace import StepTrace, TraceWriter, read_trace
from engine.model.checkpoint import resolve_model
from engine.request import Request
from engine.sampling_params import SamplingParams

CONFIG = EngineConfig(dtype="float32", kv_cache_memory=2**22, max_num_batched_tokens=32)
SVG = "{http://www.w3.org/2000/svg}"


def requests() -> list[Request]:
    stem = np.arange(200, 240, dtype=np.int32)
    labels = (np.array([5, 6], dtype=np.int32), np.array([7], dtype=np.int32))
    texts = [Request(f"t{i}", np.append(stem, np.int32(i)), SamplingParams(max_tokens=3 + i)) for i in range(3)]
    return [*texts, Request("c", np.append(stem, np.int32(9)), labels=labels)]


def test_a_row_for_each_step_with_what_it_held(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    engine = build_engine(resolve_model(str(tiny_model)), CONFIG, detokenize=False, on_step=TraceWriter(path))
    ran: list[tuple[int, ...]] = []
    forward = engine.runner.forward

    def seen(step: Any) -> Any:
        kv_bytes = engine.pool.num_used * engine.runner.block_bytes
        ran.append((step.num_prefill_tokens, step.num_decode_tokens, step.num_label_tokens, kv_bytes))
        return forward(step)

    engine.runner.forward = seen  # type: ignore[method-assign]
    run_plan(engine, plan_requests(engine, requests()), requests())
    counters = engine.counters()
    engine.close()
    steps = read_trace(path)
    assert [(s.prefill_tokens, s.decode_tokens, s.label_tokens, s.kv_bytes) for s in steps] == ran
    assert [s.step for s in steps] == list(range(counters.steps))
    assert sum(s.prefill_tokens for s in steps) == counters.computed_prompt_tokens == 44
    assert sum(s.label_tokens for s in steps) == 1
    assert all(s.running == s.decode_tokens for s in steps)
    assert steps[0].waiting == 4
    assert (steps[-1].running, steps[-1].waiting) == (1, 0)
    budget = CONFIG.max_num_batched_tokens, engine.pool.num_blocks * engine.runner.block_bytes
    assert {(s.step_tokens, s.kv_budget_bytes) for s in steps} == {budget}
    assert all(min(s.schedule_ms, s.model_ms, s.sample_ms) > 0 for s in steps)


def test_the_plot_has_a_mark_for_each_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    writer = TraceWriter(path)
    steps = [StepTrace(i, 30 - i, i, i % 2, i, 9 - i, 1000 * i, 0.25, 5.5 + i, 1.5) for i in range(9)]
    for step in steps:
        writer(step)
    assert read_trace(path) == steps
    plot_trace.plot(path)
    assert capsys.readouterr().out == f"{tmp_path / 'trace.svg'}\n"
    root = ET.fromstring((tmp_path / "trace.svg").read_text())
    marks = [group for group in root.iter(f"{SVG}g") if group.get("class") == "step"]
    assert len(marks) == 9
    # Tokens by kind where there are any, and the time.
    assert [len(mark.findall(f"{SVG}rect")) for mark in marks] == [2 + (i > 0) + i % 2 for i in range(9)]
    [line] = root.iter(f"{SVG}polyline")
    assert len((line.get("points") or "").split()) == 18
    widths = [float(mark.findall(f"{SVG}rect")[-1].get("width") or 0) for mark in marks]
    assert widths[8] / widths[0] == pytest.approx((0.25 + 13.5 + 1.5) / (0.25 + 5.5 + 1.5), rel=0.01)


def words(drawing: str, kind: str) -> list[str]:
    return [text.text or "" for text in ET.fromstring(drawing).iter(f"{SVG}text") if text.get("class") == kind]


def test_its_file_is_closed_with_the_context(tmp_path: Path) -> None:
    step = StepTrace(0, 3, 0, 0, 1, 0, 1000, 0.25, 5.5, 1.5)
    with TraceWriter(tmp_path / "trace.jsonl") as writer:
        writer(step)
        assert read_trace(tmp_path / "trace.jsonl") == [step], "a line is there at once"
    with pytest.raises(ValueError, match="closed file"):
        writer(step)


def test_axes_have_ticks_and_the_budget_a_line() -> None:
    """Two seconds, 80 of 100 tokens, 2 of 4 MiB; the budgets are the panels' tops."""
    step = StepTrace(0, 80, 0, 0, 1, 0, 2**21, 0.0, 1000.0, 0.0, 100, 2**22)
    drawing = plot_trace.draw([step, step])
    tokens, kv = ["0", "20", "40", "60", "80", "100"], ["0", "1", "2", "3", "4"]
    times = ["0 s", "0.2 s", "0.4 s", "0.6 s", "0.8 s", "1 s", "1.2 s", "1.4 s", "1.6 s", "1.8 s", "2 s"]
    assert words(drawing, "tick") == [*tokens, *kv, "0", "200", "400", "600", "800", "1k", *times]
    lines = [line for line in ET.fromstring(drawing).iter(f"{SVG}line") if line.get("class") == "budget"]
    assert [float(line.get("y1") or 0) for line in lines] == [40.0, 230.0]
    assert "tokens a step; budget 100" in drawing


def test_a_budget_far_above_what_is_used_is_told_in_words() -> None:
    drawing = plot_trace.draw([StepTrace(0, 8, 0, 0, 1, 0, 2**20, 0.0, 9.0, 0.0, 4096, 2**31)])
    assert "budget 4,096" in drawing
    assert "KV in use, MiB; budget 2,048 MiB" in drawing
    assert 'class="budget"' not in drawing


def test_a_trace_of_an_earlier_version_has_no_budget(tmp_path: Path) -> None:
    line = '{"step":0,"prefill_tokens":3,"decode_tokens":0,"label_tokens":0,"running":1,"waiting":0,"kv_bytes":9,'
    (tmp_path / "old").write_text(line + '"schedule_ms":1.0,"model_ms":2.0,"sample_ms":3.0}\n')
    assert read_trace(tmp_path / "old") == [StepTrace(0, 3, 0, 0, 1, 0, 9, 1.0, 2.0, 3.0)]
    assert "budget" not in plot_trace.draw(read_trace(tmp_path / "old"))


def test_an_empty_trace_is_an_empty_plot() -> None:
    assert not list(ET.fromstring(plot_trace.draw([])).iter(f"{SVG}g"))


def test_a_drawing_is_svg_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    TraceWriter(path)(StepTrace(0, 3, 0, 0, 1, 0, 1000, 0.25, 5.5, 1.5))
    with pytest.raises(UserError, match=r"trace\.png: the drawing is SVG; end its name in \.svg"):
        plot_trace.plot(path, tmp_path / "trace.png")
    assert not (tmp_path / "trace.png").exists()
    plot_trace.plot(path, tmp_path / "other.SVG")
    assert (tmp_path / "other.SVG").read_text().startswith("<svg")


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="is not a trace"):
        read_trace(tmp_path / "other")
    with pytest.raises(UserError, match="--trace"):
        TraceWriter(tmp_path / "no" / "such" / "folder")
