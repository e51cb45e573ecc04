"""Two runs, or two folders, set beside each other; what the comments say; what stays shut."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest

from engine.errors import UserError
from engine.request import LabelScore, Request, RequestOutput
from tasks.query import query
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import run_steps, use_fakes

LABELS = [" yes", " no"]


class Saying(FakeWorkers):
    """Says yes to the prompts that hold one of `words`, as sure as `lead` says."""

    def __init__(self, words: Sequence[str], lead: float = 2.0) -> None:
        super().__init__()
        self.words, self.lead = words, lead

    def _answer(self, request: Request) -> RequestOutput:
        text = bytes(request.prompt_token_ids.astype("uint8")).decode()
        yes = any(word in text for word in self.words)
        likelihoods = (-1.0, -1.0 - self.lead) if yes else (-1.0 - self.lead, -1.0)
        scores = tuple(LabelScore(likelihood, False) for likelihood in likelihoods)
        return RequestOutput(request.request_id, "scored", len(request.prompt_token_ids), label_scores=scores)


Say = Any


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, job_of: JobMaker, tmp_path: Path) -> Say:
    """Runs a job on a table of words, over an engine that says yes to some of them. Returns the run's id."""

    def run(words: Sequence[str], *, to: str = "out", rows: str = "abcdef", **how: bool) -> str:
        use_fakes(monkeypatch, Saying(words))
        table = [{"id": f"r-{word}", "text": f"row {word}" if word != "f" else None} for word in rows]
        job = job_of(table, source={"id": "id"}, output=str(tmp_path / to))
        run_steps(job, **how)
        return str(_ask(job.output_folder, "select run_id from runs order by sequence desc limit 1")[0]["run_id"])

    return run


def _ask(folder: Path, sql: str, **others: Path) -> list[dict[str, Any]]:
    with query(folder, sql, others=others) as result:
        return list(result.table().to_pylist())


COMPARED = "select custom_id, a_answer, b_answer, same from {} order by custom_id"


def test_two_runs_of_a_folder(say: Say, tmp_path: Path) -> None:
    """The second scored all rows again, in another way; answers are those at the end of each run."""
    first = say(["a", "b", "c"])
    second = say(["a", "b", "d"], full=True)
    out = tmp_path / "out"
    assert _ask(out, COMPARED.format(f"compare_runs('{first}', '{second}')")) == [
        {"custom_id": "r-a", "a_answer": " yes", "b_answer": " yes", "same": True},
        {"custom_id": "r-b", "a_answer": " yes", "b_answer": " yes", "same": True},
        {"custom_id": "r-c", "a_answer": " yes", "b_answer": " no", "same": False},
        {"custom_id": "r-d", "a_answer": " no", "b_answer": " yes", "same": False},
        {"custom_id": "r-e", "a_answer": " no", "b_answer": " no", "same": True},
        {"custom_id": "r-f", "a_answer": None, "b_answer": None, "same": None},
    ]
    [met] = _ask(out, f"from agreement('{first}', '{second}') where task = 'choice'")
    # Of five rows three are alike; by chance 3/5 * 3/5 + 2/5 * 2/5 = 0.52 of them would be.
    assert (met["compared"], met["same"], met["agreement"]) == (5, 3, 0.6)
    assert met["kappa"] == pytest.approx((0.6 - 0.52) / (1 - 0.52), abs=1e-4)
    now, then = (_ask(out, f"from compare_runs('{second}', '{name}') order by custom_id") for name in ("this", second))
    assert now == then


def test_a_run_that_scored_only_new_rows_stands_for_all(say: Say, tmp_path: Path) -> None:
    first = say(["a"], rows="abc")
    second = say(["a"], rows="abcd")
    rows = _ask(tmp_path / "out", COMPARED.format(f"compare_runs('{first}', '{second}')"))
    assert [(row["custom_id"], row["a_answer"], row["b_answer"]) for row in rows] == [
        ("r-a", " yes", " yes"),
        ("r-b", " no", " no"),
        ("r-c", " no", " no"),
        ("r-d", None, " no"),
    ]


def test_two_folders(say: Say, tmp_path: Path) -> None:
    one = say(["a", "b"])
    two = say(["a"], to="second", rows="abcd")
    out, second = tmp_path / "out", tmp_path / "second"
    by_name = _ask(out, COMPARED.format("compare_runs('this', 'other')"), other=second)
    assert [(row["custom_id"], row["same"]) for row in by_name] == [
        ("r-a", True),
        ("r-b", False),
        ("r-c", True),
        ("r-d", True),
        ("r-e", None),
        ("r-f", None),
    ]
    by_run = _ask(out, COMPARED.format(f"compare_runs('{one}', '{two}')"), other=second)
    assert by_run == by_name
    counts = "select (select count(*) from results) as here, (select count(*) from other.results) as there"
    assert _ask(out, counts, other=second) == [{"here": 5, "there": 4}]


def test_rows_that_another_folder_lacks_are_said(say: Say, tmp_path: Path) -> None:
    say(["a"])
    say(["a"], to="second")
    [part] = (tmp_path / "second" / "parts").glob("**/*.parquet")
    part.unlink()
    with query(tmp_path / "out", "select 1", others={"other": tmp_path / "second"}) as result:
        assert str(result.warning).startswith(f"{tmp_path / 'second'}: 5 of 6 rows are missing")


def test_a_name_that_is_nobodys_is_said(say: Say, tmp_path: Path) -> None:
    run = say(["a"])
    with pytest.raises(UserError, match="no run and no folder is named run-9"):
        _ask(tmp_path / "out", f"from compare_runs('{run}', 'run-9')")
    with pytest.raises(UserError, match="no run and no folder is named nobody"):
        _ask(tmp_path / "out", "from agreement('nobody', 'this')")


@pytest.mark.parametrize("name", ["this", "Main", "temp", "a.b", 'x"; drop view results; --', "", "1st"])
def test_what_is_no_name_for_a_folder(say: Say, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is no name for a folder"):
        query(tmp_path, "select 1", others={name: tmp_path})


@pytest.mark.fault(24)
def test_a_folder_beside_another_opens_nothing_else(say: Say, tmp_path: Path) -> None:
    say(["a"])
    say(["a"], to="second")
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    for attack in (
        f"from read_text('{secret}')",
        f"from read_text('{tmp_path}/second/../secret.txt')",
        f"from glob('{tmp_path}/*')",
    ):
        with pytest.raises(UserError) as said:
            _ask(tmp_path / "out", attack, other=tmp_path / "second")
        assert "a secret" not in str(said.value)
    with pytest.raises(UserError, match="give one SELECT"):
        _ask(tmp_path / "out", "detach other", other=tmp_path / "second")
    with pytest.raises(UserError, match="holds no results"):
        _ask(tmp_path / "out", "select 1", other=tmp_path)


def test_another_duckdb_has_the_macros(say: Say, tmp_path: Path) -> None:
    first, second = say(["a"]), say(["b"], full=True)
    out = tmp_path / "out"
    with duckdb.connect(str(out / "results.duckdb"), read_only=True, config={"file_search_path": str(out)}) as own:
        assert own.sql(f"select compared, same from agreement('{first}', '{second}')").fetchall()[0] == (5, 3)
        assert own.sql(
            "select comment from dictionary where column_name = 'label' and name = 'results'"
        ).fetchall() == [("The likeliest label",)]


def test_every_view_column_and_macro_has_a_comment(say: Say, tmp_path: Path) -> None:
    say(["a"])
    assert _ask(tmp_path / "out", "from dictionary where comment is null") == []
    kinds = _ask(tmp_path / "out", "select kind, count(*) as n from dictionary where column_name is null group by all")
    assert {one["kind"]: one["n"] for one in kinds} == {"view": 8, "macro": 2}


def test_figures_of_a_run(say: Say, tmp_path: Path) -> None:
    say(["a"])
    labels = _ask(tmp_path / "out", "from label_counts")
    # softmax of two labels that are 2 apart
    likely = pytest.approx(1 / (1 + math.exp(-2)))
    assert [(row["label"], row["num_rows"], row["fraction"], row["mean_probability"]) for row in labels] == [
        (" no", 4, 0.8, likely),
        (" yes", 1, 0.2, likely),
    ]
    [speed] = _ask(tmp_path / "out", "from throughput")
    [run] = _ask(tmp_path / "out", "from runs")
    assert speed["requests"] == 5
    assert speed["requests_per_second"] == pytest.approx(5 / run["seconds"], rel=0.05)
