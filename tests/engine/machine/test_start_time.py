"""What a start is expected to take: what this machine took last, else by the weights."""

from dataclasses import replace
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.figures import figure, percent
from engine.loop.build import build_engine
from engine.machine.device import resolve_device
from engine.machine.machine_note import read_note, write_note
from engine.machine.start_time import STARTING_SECONDS, expected_loading, expected_starting, note_starting
from engine.model.checkpoint import resolve_model

CONFIG = EngineConfig(device="cpu", kv_cache_memory=2**22)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))


def test_an_expectation_gives_way_to_what_was_measured(tiny_model: Path) -> None:
    assert expected_starting() == STARTING_SECONDS
    note_starting(4.321)
    assert expected_starting() == 4.32
    model, device = resolve_model(str(tiny_model)), resolve_device(CONFIG)
    assert expected_loading(600_000_000_000, model, CONFIG, device) == 2001.0
    build_engine(model, CONFIG, detokenize=False).close()
    measured = expected_loading(600_000_000_000, model, CONFIG, device)
    assert 0 < measured < 2000
    assert expected_loading(0, model, CONFIG, device) == measured
    assert expected_loading(0, model, replace(CONFIG, quantization="int8"), device) == 1.0


@pytest.mark.parametrize("content", ["4", None, [4], -1, 0, 1e9, {"a": 1}], ids=repr)
def test_a_note_that_says_nothing_is_passed_over(content: object) -> None:
    write_note("starting", content)
    assert expected_starting() == STARTING_SECONDS


def test_a_cache_that_cannot_be_written_costs_the_note(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the folder's place")
    note_starting(4.0)
    assert read_note("starting") is None


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0, 1, "0.0"), (0.04, 1, "under 0.1"), (0.06, 1, "0.1"), (1234.56, 1, "1,234.6"), (0.004, 2, "under 0.01")],
)
def test_no_figure_is_a_zero_that_is_none(value: float, digits: int, text: str) -> None:
    assert figure(value, digits) == text


def test_percent() -> None:
    assert [percent(value) for value in (0, 0.0001, 0.408, 1)] == ["0.0%", "under 0.1%", "40.8%", "100.0%"]
