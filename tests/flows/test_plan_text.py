"""`trunkline plan`, word for word, for a table drawn by hand on the tiny model."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flows import cli

Planned = Callable[..., tuple[int, str, str]]

# Two documents, each before three questions; then a row that is twice there, one without a prompt, and one alone.
DOCUMENTS = ["The parcel came late and the box was open.", "A kind answer within the hour, thank you."]
QUESTIONS = [" Is it about a parcel?", " Is it a complaint?", " Is it a complaint, or thanks?"]
TEXTS = [*(document + question for document in DOCUMENTS for question in QUESTIONS), None, "Alone."]
TEXTS.append(TEXTS[0])

CHOICE = """\
rows                           9   1 cannot be scored
unique requests                7   0 have an answer already
plan PLAN
  requests                     7   in 4 prefix groups, 1 shards
  prompt tokens              101   of different prompts
  computed tokens             49   51.5% saved (ideal 51.5%)
  label tokens                14
  KV peak          under 0.1 MiB   of 64 MiB
  computing          under 0.1 s
  memory at most  0.23 GiB (0.03 GiB weights, 0.06 GiB KV, 0.14 GiB activations and logits)
  expected time            8.1 s   8.1 s of it starting and loading
"""
GENERATE = """\
rows                           9   1 cannot be scored
unique requests                7   0 have an answer already
plan PLAN
  requests                     7   in 2 prefix groups, 1 shards
  prompt tokens              101   of different prompts
  computed tokens             53   47.5% saved (ideal 51.5%)
  decode tokens               84   at most
  KV peak                0.1 MiB   of 64 MiB
  computing          under 0.1 s   at most
  memory at most  0.23 GiB (0.03 GiB weights, 0.06 GiB KV, 0.14 GiB activations and logits)
  expected time            8.1 s   8.1 s of it starting and loading; answers as long as they may be
"""
# 0.9 of what a driver leaves of 80 GiB, less what the model needs and 1 GiB of reserve.
H100 = """\
rows                           9   1 cannot be scored
unique requests                7   0 have an answer already
plan PLAN
  requests                     7   in 4 prefix groups, 1 shards
  prompt tokens              101   of different prompts
  computed tokens             49   51.5% saved (ideal 51.5%)
  label tokens                14
  KV peak          under 0.1 MiB   of 71,078 MiB
  computing          under 0.1 s
  memory at most  69.56 GiB (0.01 GiB weights, 69.41 GiB KV, 0.14 GiB activations and logits)
  expected time            8.0 s   8.0 s of it starting and loading
  planned for     NVIDIA H100 80GB (SXM), by its data sheet
"""
NONE = """\
rows                           0   the source has no rows
unique requests                0   0 have an answer already
plan PLAN
  requests                     0   in 0 prefix groups, 0 shards
  prompt tokens                0   of different prompts
  computed tokens              0   0.0% saved (ideal 0.0%)
  KV peak                0.0 MiB   of 64 MiB
  computing                0.0 s
  memory at most  0.23 GiB (0.03 GiB weights, 0.06 GiB KV, 0.14 GiB activations and logits)
  expected time            7.0 s   7.0 s of it starting and loading
"""


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A job whose plan depends on nothing that was measured on this machine."""
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "rows.parquet")
    return {
        "name": "drawn",
        "source": {"parquet": str(tmp_path / "rows.parquet")},
        "prompt": {"column": "text"},
        "task": {"type": "choice", "labels": [" yes", " yes, thanks", " no"]},
        "model": {"path": str(tiny_model), "dtype": "float32"},
        "engine": {"device": "cpu", "kv_cache_memory": "64MiB", "max_num_batched_tokens": 256, "block_size": 4},
        "output": str(tmp_path / "out"),
    }


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Planned:
    """By a job and options: the exit code, and what the command prints of it, as a result and as an error.

    The plan's name is left out, which is a hash of the model's weights too.
    """

    def run(job: dict[str, Any], *options: str) -> tuple[int, str, str]:
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        monkeypatch.setattr(sys, "argv", ["trunkline", "plan", str(path), *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        named = re.sub(r"^plan [0-9a-f]{32}$", "plan PLAN", printed.out, flags=re.MULTILINE)
        return int(ended.value.code or 0), named, printed.err

    return run


def test_labels(job: dict[str, Any], planned: Planned, tmp_path: Path) -> None:
    assert planned(job) == (0, CHOICE, "")
    assert not (tmp_path / "out").exists()


def test_texts(job: dict[str, Any], planned: Planned) -> None:
    job |= {"task": {"type": "generate"}, "sampling": {"max_tokens": 12}}
    job["engine"]["sharing"] = "single_level"
    assert planned(job) == (0, GENERATE, "")


def test_a_source_without_rows(job: dict[str, Any], planned: Planned, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    assert planned(job) == (0, NONE, "")


def test_a_gpu_that_is_not_here(job: dict[str, Any], planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, with the KV that its memory leaves; the device that the job names is another plan's."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: pytest.fail("a plan asks no driver"))
    del job["engine"]["kv_cache_memory"], job["model"]["dtype"]
    assert planned(job, "--device", "h100") == (0, H100, "")


def test_a_gpu_that_is_not_known(job: dict[str, Any], planned: Planned) -> None:
    said = (
        "trunkline: --device: 'h1000' is not one of a100-40gb, a100-80gb, b200, h100, h100-pcie, h200, l4, l40s, "
        "mi300x, rtx-4090\n"
    )
    assert planned(job, "--device", "h1000") == (2, "", said)
