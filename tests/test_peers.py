"""`make bench-peers`, with processes that take no time: whose turn it is, what is kept, what the table says."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer

from engine.errors import UserError
from engine.model.checkpoint import resolve_model
from engine.model.tokenizer import load_tokenizer
from examples.peers import __main__ as peers
from examples.peers import environments, few_shot
from examples.peers.journal import Journal
from examples.peers.process import PeerProcess
from examples.peers.shapes import SHAPES

PRECISIONS = ["float32", "int8"]
SECONDS = {"float32": 20.0, "int8": 5.0, "bfloat16 sorted": 40.0, "float32 sorted": 10.0}
OUR_REPORT = {
    "ceiling_fraction": 0.5,
    "saved_fraction": 0.75,
    "peak_kv_bytes": 2**30,
    "other_rss_bytes": 2**29,
    "version": "0.1.0",
    "torch": "2",
    "device": "cpu",
}


class Machine:
    """Stands for the processes; keeps what was started."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.broken: str | None = None
        self.batches: list[str] = []
        self.ended = 0

    def run_once(self, arguments: list[str], variables: dict[str, str], folder: Path) -> dict[str, Any]:
        """Ours."""
        text = self._start(arguments, variables)
        dtype = arguments[arguments.index("--dtype") + 1]
        self.batches.append(f"us {text.partition('--dtype ')[2]}")
        name = "int8" if "int8" in arguments else dtype
        return OUR_REPORT | {"seconds": SECONDS[name], "load_seconds": 1.0}

    def process(self, arguments: list[str], variables: dict[str, str], folder: Path) -> "Loaded":
        assert "PYTHONPATH" not in variables
        self._start(arguments, variables)
        return Loaded(self, arguments[arguments.index("--dtype") + 1])

    def _start(self, arguments: list[str], variables: dict[str, str]) -> str:
        text = " ".join(arguments)
        assert int(variables["OMP_NUM_THREADS"]) == len(variables["VLLM_CPU_OMP_THREADS_BIND"].split(","))
        self.started.append(text)
        if self.broken is not None and self.broken in text:
            raise peers.UserError("no memory")
        return text


class Loaded:
    """A peer's process."""

    def __init__(self, machine: Machine, dtype: str) -> None:
        self.machine, self.dtype = machine, dtype

    def ask(self, workload: Path, order: str) -> dict[str, Any]:
        self.machine.batches.append(f"{self.dtype} {order}")
        return {"seconds": SECONDS.get(f"{self.dtype} {order}", 50.0), "load_seconds": 90.0, "version": "peer 1"}

    def __enter__(self) -> "Loaded":
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.ended += 1


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(peers, "run_once", machine.run_once)
    monkeypatch.setattr(peers, "PeerProcess", machine.process)
    monkeypatch.setattr(peers, "install", lambda *_: None)
    monkeypatch.setattr(peers, "write_model", lambda folder: folder / "model")
    monkeypatch.setattr(peers, "write_workload", lambda shape, folder: folder / f"{shape.name}.jsonl")
    return machine


def compare(folder: Path, **options: Any) -> None:
    peers.compare(
        **{"only": ["tree"], "precision": PRECISIONS, "variant": [], "rounds": 3, "budget_minutes": 5.0} | options,
        folder=folder,
    )


def test_sides_take_turns_and_the_peer_keeps_its_best(machine: Machine, tmp_path: Path) -> None:
    compare(tmp_path)
    ours = ["us float32 --quantization none", "us float32 --quantization int8"]
    tried = [f"{dtype} {order}" for dtype in ("bfloat16", "float32") for order in ("shuffled", "sorted")]
    assert machine.batches == ours + tried + 2 * [*ours, "float32 sorted"]
    # A peer is loaded once for each dtype.
    assert len(machine.started) == 3 * 2 + 2
    assert machine.ended == 2


def test_only_the_variants_that_are_named_are_tried(machine: Machine, tmp_path: Path) -> None:
    compare(tmp_path, rounds=1, variant=["bfloat16 sorted"])
    assert machine.batches[2:] == ["bfloat16 sorted"]


def test_what_is_measured_is_not_measured_again(machine: Machine, tmp_path: Path) -> None:
    compare(tmp_path, rounds=1)
    assert len(machine.batches) == 6
    compare(tmp_path, rounds=2)
    assert len(machine.batches) == 6 + 3
    compare(tmp_path, rounds=2)
    assert len(machine.batches) == 6 + 3
    compare(tmp_path, rounds=2, only=["unshared"])
    assert len(machine.batches) == 6 + 3 + 9


def test_nothing_is_started_when_the_time_is_up(machine: Machine, tmp_path: Path) -> None:
    compare(tmp_path, budget_minutes=0.0)
    assert not machine.started


def test_a_failure_is_told_and_stops_no_other(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.broken = "--quantization int8"
    with pytest.raises(typer.Exit):
        compare(tmp_path, rounds=1)
    assert "1 failed: tree, round 1: trunkline, int8" in capsys.readouterr().err
    machine.broken = None
    assert len(machine.batches) == 5
    compare(tmp_path, rounds=1)
    assert len(machine.batches) == 5 + 1
    kept = Counter(one.side for one in Journal(tmp_path / "results.jsonl"))
    assert kept == {"trunkline": 2, "vllm": 4}


def test_the_table_says_losses_too(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("| tree --instruction 1000"))
    assert "10.0 (10.0-10.0), float32 sorted" in row
    assert "**0.50x**, 20.0 (20.0-20.0)" in row
    assert "**2.00x**, 5.0 (5.0-5.0)" in row
    assert "| tree | float32 | 0.50 | 75.0% | 1.00 | 0.50 | 1.0 |" in lines
    assert "| tree | vllm | bfloat16 sorted | 40.0 |" in lines


def test_choice_has_both_peers(machine: Machine, tmp_path: Path) -> None:
    compare(tmp_path, only=["choice"], rounds=1)
    assert [Path(text.split()[1]).name for text in machine.started[2:]] == ["run_vllm.py"] * 2 + ["run_lm_eval.py"] * 2
    assert len(machine.batches) == 2 + 4 + 2
    assert ["--kv-gib 4.0" in text for text in machine.started] == [True] * 4 + [False] * 2


def test_an_unknown_workload_is_named(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="'forest' is not one of long-output"):
        compare(tmp_path, only=["forest"])


def test_every_shape_has_a_name_of_its_own() -> None:
    assert len({shape.name for shape in SHAPES}) == len({shape.label for shape in SHAPES}) == 7


FAKE_VLLM = """
from types import SimpleNamespace
import json, os
__version__ = "0"
class SamplingParams(SimpleNamespace):
    pass
class LLM:
    def __init__(self, model, **options):
        self.log = [["load", model, options]]
    def reset_prefix_cache(self):
        self.log.append(["reset"])
        return True
    def generate(self, prompts, params, use_tqdm):
        every = params if isinstance(params, list) else [params] * len(prompts)
        self.log.append(["generate", [p["prompt_token_ids"] for p in prompts], [vars(one) for one in every]])
        open(os.environ["LOG"], "w").write(json.dumps(self.log))
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * one.max_tokens)]) for one in every]
"""
FAKE_HFLM = """
import json, os
class HFLM:
    def __init__(self, **options):
        self.log = [options]
    def _loglikelihood_tokens(self, requests, disable_tqdm):
        self.log.append(requests)
        open(os.environ["LOG"], "w").write(json.dumps(self.log))
        return [(0.0, True)] * len(requests)
"""


def run(
    runner: str, tmp_path: Path, rows: list[dict[str, Any]], orders: list[str], *options: str
) -> tuple[list[Any], list[Any]]:
    """What a runner answered, and what it asked of a library that stands for the real one."""
    (tmp_path / "vllm.py").write_text(FAKE_VLLM)
    (tmp_path / "lm_eval" / "models").mkdir(parents=True)
    (tmp_path / "lm_eval" / "__init__.py").write_text('__version__ = "0"')
    (tmp_path / "lm_eval" / "models" / "huggingface.py").write_text(FAKE_HFLM)
    workload = tmp_path / "w.jsonl"
    workload.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, str(environments.HERE / runner), "MODEL", *options]
    variables = {"PYTHONPATH": str(tmp_path), "LOG": str(tmp_path / "log.json")}
    with PeerProcess(command, variables, tmp_path) as process:
        reports = [process.ask(workload, order) for order in orders]
    return reports, json.loads((tmp_path / "log.json").read_text())


def test_a_process_that_ends_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no memory')"]
    with (
        PeerProcess(command, {}, tmp_path) as process,
        pytest.raises(UserError, match="ended with 1:\nno memory"),
    ):
        process.ask(tmp_path / "w.jsonl", "shuffled")


VLLM = ("--dtype", "bfloat16", "--kv-gib", "0.5")


def test_vllm_generates_in_both_orders_on_an_empty_cache(tmp_path: Path) -> None:
    rows = [{"id": str(i), "prompt_token_ids": ids, "max_tokens": 3} for i, ids in enumerate([[2, 9], [1, 9]])]
    reports, log = run("run_vllm.py", tmp_path, rows, ["shuffled", "sorted"], *VLLM)
    assert [(one["order"], one["rows"], one["generated_tokens"]) for one in reports] == [
        ("shuffled", 2, 6),
        ("sorted", 2, 6),
    ]
    assert (log[0][2]["dtype"], log[0][2]["kv_cache_memory_bytes"]) == ("bfloat16", 2**29)
    assert [entry[0] for entry in log] == ["load", "generate", *("reset", "generate") * 2]
    assert [log[3][1], log[5][1]] == [[[2, 9], [1, 9]], [[1, 9], [2, 9]]]
    assert all(one["ignore_eos"] and one["temperature"] == 0 for one in log[3][2])


@pytest.mark.parametrize(
    ("labels", "prompts", "key"),
    [([[5], [6]], [[1]], "logprob_token_ids"), ([[5, 7], [6]], [[1, 5, 7], [1, 6]], "prompt_logprobs")],
    ids=["one-token", "longer"],
)
def test_vllm_scores_labels(tmp_path: Path, labels: list[list[int]], prompts: list[list[int]], key: str) -> None:
    rows = [{"id": "0", "prompt_token_ids": [1], "continuations": labels}]
    reports, log = run("run_vllm.py", tmp_path, rows, ["shuffled"], *VLLM)
    assert reports[0]["generated_tokens"] == 0
    assert log[-1][1] == prompts
    assert all(key in params for params in log[-1][2])


def test_lm_eval_scores_every_label_behind_its_prompt(tmp_path: Path) -> None:
    rows = [{"id": str(i), "prompt_token_ids": [i], "continuations": [[5], [6, 7]]} for i in range(2)]
    reports, log = run("run_lm_eval.py", tmp_path, rows, ["shuffled"], "--dtype", "float32")
    assert [(one["order"], one["rows"], one["version"]) for one in reports] == [("shuffled", 2, "lm-eval 0")]
    assert log[0]["dtype"] == "float32"
    assert [len(batch) for batch in log[1:]] == [1, 4]
    assert [request[1:] for request in log[2]] == [[[0], [5]], [[0], [6, 7]], [[1], [5]], [[1], [6, 7]]]


@pytest.mark.parametrize("kind", ["letters", "answers"])
def test_the_few_shot_set_is_mmlus(kind: str) -> None:
    """Each subject's examples before questions of other subjects, with what is asked behind each."""
    tokenizer = load_tokenizer(resolve_model("embedded"))
    (subject, prompt), *_ = few_shot.read_prompts().items()
    lines = few_shot.rows(kind, 2, 3)
    assert [line["id"] for line in lines] == [str(number) for number in range(6)]
    own = [question.text for question in few_shot.questions_of({subject: prompt})]
    for line in lines[:3]:
        text = tokenizer.decode(line["prompt_token_ids"])
        assert text.startswith(f"{prompt.strip()}\n\nQ: ")
        assert not any(text.endswith(f"{question}\nA:") for question in own)
        ends = [tokenizer.decode(ids) for ids in line["continuations"]]
        assert len(ends) == 4
        if kind == "letters":
            assert ends == list(few_shot.LETTERS)
            assert text.endswith("\nAnswer:")
        else:
            asked = text.rpartition("\n\nQ: ")[2].removesuffix("\nA:")
            [answers] = {q.answers for q in few_shot.questions_of(few_shot.read_prompts()) if q.text == asked}
            assert ends == [f" {answer}" for answer in answers]
