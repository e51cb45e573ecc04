"""Any sequence of changes, kills, retries and damage, held to what a dictionary in memory says of each row.

A kill is an exception that nothing catches, raised at a failpoint and at every later one, for a process for each run
would take a second. It leaves out what only a process's end does: the lock is let go by a `finally`, open files are
closed, and buffers written. `tests/tasks/kill_driver.py` kills processes, at every failpoint.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.errors import UserError
from engine.failpoint import Abandoned, forget_hits
from tasks.job.job import ScoringJob
from tasks.report.totals import Totals
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import open_run
from tasks.store.scoring_store import ScoringStore
from tasks.store.upkeep import choose, remove
from tests.tasks.fakes import BAD_WORD, FakeWorkers, job_content, write_model
from tests.tasks.steps import make_job, run_steps, use_fakes

UNLUCKY = f"an {BAD_WORD.decode()} row"
TEXTS = (None, UNLUCKY, *(f"Instruction. Document {i // 3}. Question {i % 3}?" for i in range(9)))
MODELS = ("first", "second")
# Of each row, what is asserted here: with all that a row has, a query takes twice as long to be planned.
ENDS = """
SELECT custom_id, status, label, error_type FROM results
UNION ALL
SELECT custom_id, status, label, error_type FROM errors
ORDER BY custom_id
"""
# In memory where it can be: what is synced here survives no more than the test does, and it is a tenth of the time.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def label(text: str) -> str:
    """What the fake engine finds likelier of " yes" and " no", whose log-likelihoods follow from the prompt's bytes."""
    seed = hashlib.sha256(np.frombuffer(text.encode(), np.uint8).astype(np.int32).tobytes()).digest()
    return max((-seed[0] / 16 - 4, " yes"), (-seed[1] / 16 - 3, " no"))[1]


class AnySequence(RuleBasedStateMachine):
    """`rows` are texts by id. `retried` are those a killed `retry` asked in vain; the next may take it up."""

    @initialize(rows=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8))
    def begin(self, rows: list[str | None]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="trunkline-sequence-", dir=MEMORY))
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("TRUNKLINE_CACHE", str(self.folder / "cache"))
        self.patch.setenv("XDG_STATE_HOME", str(self.folder / "state"))
        self.engine = FakeWorkers()
        use_fakes(self.patch, self.engine)
        for module in ("plan", "publish"):
            # Made of what is committed; a query makes its own views.
            self.patch.setattr(f"tasks.{module}.write_views", lambda *_: None)
        self.patch.setattr("tasks.publish.publish_report", self.read)
        for model in MODELS:
            write_model(self.folder / model)
            (self.folder / model / "model.safetensors").write_text(model)
        self.model = MODELS[0]
        self.rows: dict[str, str | None] = {}
        self.text_of: dict[str, tuple[str, str]] = {}
        self.retried: set[tuple[str, str]] = set()
        self.add_rows(rows)

    def teardown(self) -> None:
        """Behind whatever was drawn, a whole run mends all."""
        if hasattr(self, "folder"):
            try:
                self.run()
            finally:
                self.patch.undo()
                shutil.rmtree(self.folder)

    @rule(rows=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4))
    def add_rows(self, rows: list[str | None]) -> None:
        self.rows |= {f"r{len(self.rows) + i:03}": text for i, text in enumerate(rows)}

    @rule(which=st.integers(0, 99), text=st.sampled_from(TEXTS))
    def change_a_row(self, which: int, text: str | None) -> None:
        self.rows[sorted(self.rows)[which % len(self.rows)]] = text

    @rule(model=st.sampled_from(MODELS))
    def take_a_model(self, model: str) -> None:
        self.model = model

    @rule()
    def run(self) -> None:
        self.score(heals=False, retry_failed=False)

    @rule(heals=st.booleans())
    def retry(self, heals: bool) -> None:
        self.score(heals=heals, retry_failed=True)

    @rule(place=st.integers(1, 60), retry_failed=st.booleans())
    def be_killed(self, place: int, retry_failed: bool) -> None:
        """Whatever was committed before is there, and what is committed now was asked for."""
        before, asked, tries = self.committed(), self.wanted(), self.tries()
        forget_hits()
        with self.patch.context() as during:
            during.setenv("FAILPOINT", f"*:{place}:abandon")
            self.engine.heals = False
            with suppress(Abandoned):  # a short run ends before the place comes
                run_steps(self.job(), retry_failed=retry_failed)
            self.learn()
        now = self.committed()
        if retry_failed:
            self.retried |= {key for key, count in self.tries().items() if count > tries.get(key, 0)}
        assert before.keys() <= now.keys()
        assert {text for (model, text) in now.keys() - before.keys() if model == self.model} <= asked

    @rule()
    def run_beside_another(self) -> None:
        before = self.committed()
        with open_run(self.job()), pytest.raises(UserError, match="is in use by process"):
            run_steps(self.job())
        assert self.committed() == before

    @precondition(lambda self: self.parts())
    @rule(which=st.integers(0, 99), at=st.floats(0, 1, exclude_max=True), in_place=st.booleans())
    def corrupt_a_part(self, which: int, at: float, in_place: bool) -> None:
        """In place, the store's link to it has the damage as well."""
        path = self.parts()[which % len(self.parts())]
        content = bytearray(path.read_bytes())
        content[int(at * len(content))] ^= 1
        if not in_place:
            path.unlink()
        path.write_bytes(content)

    @precondition(lambda self: self.store.exists)
    @rule()
    def prune_the_store(self) -> None:
        remove(self.store, choose(self.store))

    @invariant()
    def nothing_is_committed_twice(self) -> None:
        if hasattr(self, "folder"):
            tries = [(row["request_hash"], row["attempts"]) for row in self.whole_rows(self.parts())]
            assert len(set(tries)) == len(tries)

    def score(self, *, heals: bool, retry_failed: bool) -> None:
        """A whole run: every row ends as the dictionary says, and nothing is scored that had an answer."""
        before, stored = self.committed(), self.in_store()
        known = {text for (model, text), status in before.items() if model == self.model and status != "error"}
        if not retry_failed:
            known |= {text for (model, text) in before if model == self.model}
        maybe = {text for (model, text) in self.retried if model == self.model}
        self.retried.clear()
        self.engine.heals = heals
        self.engine.works.clear()
        run_steps(self.job(), retry_failed=retry_failed)
        self.learn()
        scored = [self.text_of[name][1] for name in self.engine.scored]
        assert len(set(scored)) == len(scored)
        assert self.wanted() - known - stored - maybe <= set(scored) <= self.wanted() - known
        after = self.committed()
        for row in self.table:
            text = self.rows[row["custom_id"]]
            if text is None:
                assert row["error_type"] == "EMPTY_PROMPT"
            elif after[self.model, text] == "error":
                assert (text, row["error_type"], row["label"]) == (UNLUCKY, "NON_FINITE", None)
            else:
                assert (row["status"], row["label"]) == ("ok", label(text))
        assert [row["custom_id"] for row in self.table] == sorted(self.rows)

    def read(self, _folder: OutputFolder, _plan_id: str, connection: duckdb.DuckDBPyConnection, _: Totals) -> None:
        """In the place of a report: the table, in the views that the report is made of."""
        self.table: list[dict[str, Any]] = connection.sql(ENDS).to_arrow_table().to_pylist()

    def job(self) -> ScoringJob:
        rows = [{"id": name, "text": text} for name, text in self.rows.items()]
        path = self.folder / "rows.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        content = job_content(self.folder, {"jsonl": str(path), "id": "id"}, shard_seconds=1e-4)
        return make_job(content | {"model": {"path": str(self.folder / self.model)}, "store": str(self.store.root)})

    @property
    def store(self) -> ScoringStore:
        return ScoringStore(self.folder / "store")

    def wanted(self) -> set[str]:
        return {text for text in self.rows.values() if text is not None}

    def learn(self) -> None:
        """Which text each name is of."""
        for work in self.engine.works:
            for request in work.requests:
                text = bytes(request.prompt_token_ids.tolist()).decode()
                self.text_of.setdefault(request.request_id, (self.model, text))

    @property
    def out(self) -> OutputFolder:
        return OutputFolder(self.folder / "out")

    def parts(self) -> list[Path]:
        return sorted(self.out.parts.glob("*.parquet"))

    def committed(self) -> dict[tuple[str, str], str]:
        """How each request of the folder's whole parts ended, the newest try last."""
        rows = sorted(self.whole_rows(self.parts()), key=lambda row: row["attempts"])
        return {self.text_of[row["request_hash"]]: row["status"] for row in rows}

    def tries(self) -> dict[tuple[str, str], int]:
        rows = sorted(self.whole_rows(self.parts()), key=lambda row: row["attempts"])
        return {self.text_of[row["request_hash"]]: row["attempts"] for row in rows}

    def in_store(self) -> set[str]:
        found = (shelf.parts() for shelf in self.store.shelves()) if self.store.exists else ()
        contents = ((part, part.read_bytes()) for parts in found for part in parts)
        whole = [content for part, content in contents if _digest(content) == part.stem]
        names = {row["request_hash"] for content in whole for row in _tries_in(content)}
        return {text for model, text in map(self.text_of.__getitem__, names) if model == self.model}

    def whole_rows(self, parts: list[Path]) -> list[dict[str, Any]]:
        """Of manifests whose part has the bytes that were committed."""
        contents = {part: part.read_bytes() for part in parts}
        whole = {
            part.name: content
            for part, content in contents.items()
            if _digest(content).startswith(part.stem.partition("-")[2])
        }
        named = [part.name for manifest in read_manifests(self.out) for part in manifest.files] if whole else []
        return [row for name in named if name in whole for row in _tries_in(whole[name])]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@lru_cache(maxsize=1000)
def _tries_in(part: bytes) -> list[dict[str, Any]]:
    """Asked of a part behind each step, and the same each time."""
    rows: list[dict[str, Any]] = pq.read_table(
        io.BytesIO(part), columns=["request_hash", "status", "attempts"]
    ).to_pylist()
    return rows


@pytest.mark.fault(1, 7, 9, 12)
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("sequences", "steps"), [(500, 4), pytest.param(2000, 12, marks=pytest.mark.nightly)])
def test_any_sequence(sequences: int, steps: int) -> None:
    assert "FAILPOINT" not in os.environ
    run_state_machine_as_test(
        AnySequence, settings=settings(max_examples=sequences, stateful_step_count=steps, deadline=None)
    )
