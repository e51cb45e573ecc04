"""The table of `tests/README.md`, made from the tests' marks: `python -m tests.faults` rewrites it.

A test bears the number of what it is held to: `@pytest.mark.fault(7)` on a function or a case of its parameters,
`pytestmark = pytest.mark.fault(7)` for a whole file.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS / "README.md"
BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and what is right then."""

    what: str
    then: str


FAULTS = {
    1: Fault(
        "`kill -9` while rows are read, made equal, planned, scored, written, committed or published",
        "the same command finishes; what was committed is not scored again",
    ),
    2: Fault("`kill -9` of the process that has the engine", "its shard is scored again, other shards go on"),
    3: Fault("worker and flow are killed together", "the lock is free at once, and the next run takes over"),
    4: Fault("the Prefect server dies during a run", "scoring goes on, and every shard is committed"),
    5: Fault("the disk is full", "one clear line, nothing half published; a re-run continues"),
    6: Fault("a Parquet file is half written", "nobody ever reads it; the next run removes it"),
    7: Fault("a byte of a committed part changes", "its hash tells; it is set aside, told of and scored again"),
    8: Fault("a manifest is cut, empty or another program's", "its shard counts as not committed; kept as `.bad`"),
    9: Fault("two runs have one output folder", "the second is told who has it; nothing is mixed"),
    10: Fault("a lock's file is stale, its process id somebody else's", "it holds nothing"),
    11: Fault("the clock jumps", "runs keep their order, time-outs their length"),
    12: Fault("another model, prompt, type or sampling in the same folder", "never answered by an older result"),
    13: Fault("the source changes while it is read", "the run says so; the digest of what it read is recorded"),
    14: Fault("a prompt is NULL, empty or white space", "`EMPTY_PROMPT`"),
    15: Fault("a prompt is beyond the context, of 50 MB", "`CONTEXT_OVERFLOW` or the declared cut; memory is bounded"),
    16: Fault("text is no UTF-8, or has NUL or lone surrogates", "`BAD_ENCODING`; other rows go on"),
    17: Fault("an id is there twice; many rows ask the same", "refused; scored once, and given to all of them"),
    18: Fault("logits are NaN or infinite", "`NON_FINITE`; no token is made of them, no other row reads their KV"),
    19: Fault("memory ends in a step", "smaller steps, the same answers; `OUT_OF_MEMORY` for a row alone"),
    20: Fault("a row kills the engine", "it is found by halves and set aside; the rest of its shard completes"),
    21: Fault("the engine hangs", "a watchdog ends it; it is not tried for ever"),
    22: Fault("tokenizer and model disagree, or lack what the job needs", "refused before the first shard"),
    23: Fault("SQL in the names of tables, columns or filters", "a name stays a name; values are parameters"),
    24: Fault("paths and links that lead outside, pickled weights, remote code", "refused; nothing of it runs"),
    25: Fault("prompts or secrets in logs, errors or artifacts", "a prompt is its hash and length; files are 0600"),
}


def marked() -> dict[int, dict[Path, list[str]]]:
    """By number, the tests that bear it: names by file, in their order; no name stands for the whole file."""
    found: dict[int, dict[Path, list[str]]] = defaultdict(dict)
    for path in sorted(TESTS.rglob("test_*.py")):
        for name, number in _marks(ast.parse(path.read_text())):
            names = found[number].setdefault(path.relative_to(TESTS), [])
            if name is not None and name not in names:
                names.append(name)
    return found


def _marks(module: ast.Module) -> Iterator[tuple[str | None, int]]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                yield from ((node.name, number) for number in _numbers(decorator))
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            yield from ((None, number) for number in _numbers(node.value))


def _numbers(marks: ast.expr) -> Iterator[int]:
    for node in ast.walk(marks):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            yield from (ast.literal_eval(argument) for argument in node.args)


def table() -> str:
    tests = marked()
    lines = ["| # | fault | what is right | tests |", "|---|---|---|---|"]
    for number, fault in FAULTS.items():
        cells = [_cell(path, names) for path, names in tests.get(number, {}).items()]
        lines.append(f"| {number} | {fault.what} | {fault.then} | {'; '.join(cells)} |")
    return "\n".join(lines)


def _cell(path: Path, names: list[str]) -> str:
    link = f"[{path}]({path})"
    return f"{link}: {', '.join(f'`{name}`' for name in names)}" if names else link


def written(page: str) -> str:
    """What stands between the markers. Raises ValueError where there are none."""
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)].strip()


def rewrite() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    rewrite()
