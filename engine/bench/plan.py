"""Times planning against a trie that takes one prompt after the other, in Python: `make bench-plan`.

    python -m engine.bench.plan --rows 20000 --rows 100000

Groups of 16 prompts share 80 of their 100 tokens and generate 8. Both find the same tokens to compute. The trie stops
there; a plan goes on to an order, shards, costs and every step's KV. A line each: rows a second, and MiB of memory
beyond the prompts', each measured in a process of its own.
"""

import json
import resource
import subprocess
import sys
import time
from typing import Annotated

import numpy as np
import typer

from engine.bench.schedule import RATES
from engine.config import EngineConfig
from engine.model.checkpoint import load_shape, resolve_model
from engine.planning.cost import CostModel
from engine.planning.planner import plan_table
from engine.planning.prompts import Prompts
from engine.planning.request_table import NO_LABELS, NO_LOGPROBS, RequestTable
from kernels.kv_format import FLOAT32

DEGREE, PREFIX, OWN, OUTPUT, STEP_TOKENS = 16, 80, 20, 8, 512

Trie = dict[int, "Trie"]


def table_of(rows: int) -> RequestTable:
    draw = np.random.default_rng(0)
    place = draw.permutation(rows)
    prefixes = draw.integers(0, 40_000, (-(rows // -DEGREE), PREFIX), dtype=np.int32)
    tokens = np.concatenate([prefixes[place // DEGREE], draw.integers(0, 40_000, (rows, OWN), dtype=np.int32)], axis=1)
    same = np.zeros(rows, dtype=np.int64)
    return RequestTable(
        request_ids=[f"{row:032x}" for row in place.tolist()],
        prompts=Prompts(tokens.reshape(-1), (PREFIX + OWN) * np.arange(rows + 1)),
        max_tokens=same + OUTPUT,
        label_set=same + NO_LABELS,
        label_sets=(),
        logprobs_from=same + NO_LOGPROBS,
        adapter=same,
        adapters=(None,),
    )


def plan_tokens(requests: RequestTable) -> int:
    """The prompt tokens that a whole plan computes."""
    cost = CostModel(load_shape(resolve_model("embedded")), FLOAT32, RATES)
    return plan_table(requests, EngineConfig(max_num_batched_tokens=STEP_TOKENS), cost).summary.computed_tokens


def trie_tokens(requests: RequestTable) -> int:
    """The nodes of a trie with a dictionary a token."""
    root: Trie = {}
    nodes = 0
    for row in range(len(requests)):
        node = root
        for token in requests.prompts[row].tolist():
            below = node.get(token)
            if below is None:
                below = node[token] = {}
                nodes += 1
            node = below
    return nodes


WAYS = {"plan": plan_tokens, "trie": trie_tokens}


def measure(way: str, rows: int) -> dict[str, float]:
    requests = table_of(rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    tokens = WAYS[way](requests)
    seconds = time.perf_counter() - started
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"rows": rows, "computed_tokens": tokens, "rows_per_second": round(rows / seconds), "mib": round(mib)}


def bench_plan(
    rows: Annotated[list[int], typer.Option(min=1)] = [20_000, 100_000],  # noqa: B006
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time both ways over tables of so many rows."""
    if only is not None:
        typer.echo(json.dumps(measure(only, rows[0])))
        return
    typer.echo("| | rows | rows a second | MiB |\n|---|---|---|---|")
    for count in rows:
        found = {way: measure_apart(way, count) for way in WAYS}
        assert len({one["computed_tokens"] for one in found.values()}) == 1, found
        for way, one in found.items():
            typer.echo(f"| {way} | {count:,} | {one['rows_per_second']:,} | {one['mib']:,} |")


def measure_apart(way: str, rows: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "engine.bench.plan", "--rows", str(rows), "--only", way]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


if __name__ == "__main__":
    typer.run(bench_plan)
