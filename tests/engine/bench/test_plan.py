"""Both ways find the same tokens; the command prints a line each."""

from typer import Typer
from typer.testing import CliRunner

from engine.bench.plan import DEGREE, OWN, PREFIX, bench_plan, plan_tokens, table_of, trie_tokens


def test_a_plan_computes_the_nodes_of_a_trie() -> None:
    requests = table_of(10 * DEGREE)
    tokens = 10 * (PREFIX + DEGREE * OWN)
    # Two prompts of a group may go on with the same token.
    assert tokens - 10 < plan_tokens(requests) == trie_tokens(requests) <= tokens


def test_a_line_a_way_and_size() -> None:
    app = Typer()
    app.command()(bench_plan)
    said = CliRunner().invoke(app, ["--rows", "32", "--rows", "64"]).output.splitlines()
    assert [line.split("|")[1:3] for line in said[2:]] == [
        [f" {way} ", f" {rows} "] for rows in (32, 64) for way in ("plan", "trie")
    ]
