"""A shard's results as they come: which rows have ended, which are to be asked, and what of them is committed."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.failpoint import failpoint
from engine.plan import Shard, ShardWork
from engine.request import RequestOutput
from tasks.request.task_type import nth_id, split_id
from tasks.request.task_types import answer_of
from tasks.row_names import error_row
from tasks.run_commits import RunCommits
from tasks.run_failed import ErrorRowError
from tasks.shard_work import read_shard, stored_requests, to_work
from tasks.storage.manifests import commit_manifest, find_checkpoints
from tasks.storage.parts import StoredRequest, commit_part, join_parts, stage_part, to_part
from tasks.storage.run import Run
from tasks.storage.shard_manifest import ShardManifest, Share, describe
from tasks.storage.stored_plan import layout_of

Outputs = Sequence[RequestOutput]


class ShardResults:
    """Rows have numbers, in execution order. A row ends with the last output of its requests.

    `flush` commits those that have ended as a checkpoint, which is a part with a manifest of its own; `commit` puts the
    whole shard in the place of its checkpoints, those of earlier runs too.
    """

    def __init__(self, run: Run, plan_id: str, shard: Shard, commits: RunCommits) -> None:
        self._run = run
        self._plan_id = plan_id
        self._shard = shard
        self._commits = commits
        self._rows = read_shard(run, plan_id, shard)
        self._stored = stored_requests(self._rows)
        self._number = {stored.request_hash: number for number, stored in enumerate(self._stored)}
        self._sizes = [last - first for first, last in pairwise(self._rows.column("nodes").offsets.to_pylist())]
        self._num_rows = self._rows.column("num_rows").to_pylist()
        self._open: dict[int, dict[int, RequestOutput]] = {}
        self._ended: dict[int, Outputs] = {}
        self._tables: list[pa.Table] = []
        self._in_tables: list[int] = []
        self._shares: dict[str, Share] = {}
        self._since = time.monotonic()
        for checkpoint in find_checkpoints(run.folder, plan_id, shard.shard_id):
            self._take_up(checkpoint)

    @property
    def left(self) -> tuple[int, ...]:
        """Rows that have not ended."""
        ended = {*self._in_tables, *self._ended}
        return tuple(number for number in range(len(self._stored)) if number not in ended)

    def work(self, rows: Sequence[int]) -> ShardWork:
        """What the engine is asked for these rows."""
        chosen = self._rows if len(rows) == len(self._stored) else self._rows.take(pa.array(rows, pa.int64()))
        layout = layout_of(self._run.folder, self._plan_id)
        return to_work(self._run, self._plan_id, layout, self._shard, chosen)

    def began(self) -> None:
        """From now on its time counts: an engine has loaded the model, has the device, and has been asked."""
        if not self._ended:
            self._since = time.monotonic()

    def take(self, output: RequestOutput) -> int | None:
        """The row that ends with this output, if one does."""
        request_hash, place = split_id(output.request_id)
        row = self._number[request_hash]
        got = self._open.setdefault(row, {})
        got[place] = output
        if len(got) < self._sizes[row]:
            return None
        del self._open[row]
        self._ended[row] = [got[place] for place in range(len(got))]
        return row

    def fail(self, row: int, error_type: str, message: str) -> None:
        """The row ends as an error."""
        stored = self._stored[row]
        self._ended[row] = [
            RequestOutput(name, "error", stored.prompt_tokens, error_type=error_type, error_message=message)
            for name in (nth_id(stored.request_hash, place) for place in range(self._sizes[row]))
        ]

    def error_of(self, row: int) -> RequestOutput | None:
        """Why a row that ended since the last commit is an error, if it is."""
        return next((one for one in self._ended[row] if one.finish_reason == "error"), None)

    def named(self, error: RequestOutput) -> ErrorRowError:
        """The error, with the name of the row that it is of."""
        request_hash, _ = split_id(error.request_id)
        return error_row(self._run, self._plan_id, request_hash, error.error_type or "", error.error_message or "")

    def num_rows(self, row: int) -> int:
        """How many rows of the table ask the same as this one."""
        return int(self._num_rows[row])

    def forget(self, row: int) -> None:
        """The row has not ended: another run is to ask it again."""
        del self._ended[row]

    def drop_unfinished(self) -> None:
        """Rows of which only a part was answered are asked again whole."""
        self._open.clear()

    def flush(self) -> None:
        """Commits the rows that have ended since the last time, if there are any."""
        if not self._ended:
            return
        failpoint("checkpoint.start")
        numbers = sorted(self._ended)
        table = self._part_of(numbers)
        manifest, table = self._commit(table, [self._share_of(numbers, table)], is_checkpoint=True)
        failpoint("checkpoint.done")
        self._keep(table, numbers)
        for share in manifest.by_run:
            self._add(share)
        self._since = time.monotonic()
        self._ended.clear()

    @property
    def asked(self) -> Sequence[StoredRequest]:
        """What each row asks."""
        return self._stored

    def commit(self) -> tuple[ShardManifest, pa.Table]:
        """The manifest that counts of the shard, all of whose rows have ended, and its part.

        They are another run's where that one, which was late, was faster.
        """
        assert not self.left, len(self.left)
        numbers = sorted(self._ended)
        if numbers:
            table = self._part_of(numbers)
            self._keep(table, numbers)
            self._add(self._share_of(numbers, table))
            self._ended.clear()
        order = np.argsort(np.array(self._in_tables))
        part = join_parts(self._tables).take(order)
        return self._commit(part, self._planned([*self._shares.values()]))

    def _take_up(self, checkpoint: ShardManifest) -> None:
        table = self._read(checkpoint)
        self._keep(table, [self._number[name] for name in table.column("request_hash").to_pylist()])
        for share in checkpoint.by_run:
            self._add(share)

    def _read(self, manifest: ShardManifest) -> pa.Table:
        """The rows of its part, with the columns of this version."""
        return join_parts([pq.ParquetFile(self._run.folder.parts / file.name).read() for file in manifest.files])

    def _keep(self, table: pa.Table, numbers: Iterable[int]) -> None:
        self._tables.append(table)
        self._in_tables += numbers

    def _add(self, share: Share) -> None:
        before = self._shares.pop(share.run_id, None)
        self._shares[share.run_id] = share if before is None else before + share

    def _part_of(self, numbers: Sequence[int]) -> pa.Table:
        asked = [self._stored[number] for number in numbers]
        outputs = [self._ended[number] for number in numbers]
        return to_part(asked, outputs, answer_of, self._run.run_id, self._shard.shard_id)

    def _share_of(self, numbers: Sequence[int], table: pa.Table) -> Share:
        """What this run did of the shard since the last commit, whose rows the table has.

        Other shards ran beside it: outputs alone say what. A row of several prompts has the tokens of all of them.
        """
        outputs = [output for number in numbers for output in self._ended[number]]
        failed = [number for number in numbers if any(one.finish_reason == "error" for one in self._ended[number])]
        lengths = table.column("prompt_tokens").to_pylist()
        of_rows = sum(self._stored[number].prompt_tokens for number in numbers)
        of_shard = sum(stored.prompt_tokens for stored in self._stored)
        return Share(
            run_id=self._run.run_id,
            requests=len(numbers),
            rows=sum(self._num_rows[number] for number in numbers),
            errors=len(failed),
            seconds=round(time.monotonic() - self._since, 3),
            prompt_tokens=sum(lengths),
            row_prompt_tokens=sum(self._num_rows[row] * length for row, length in zip(numbers, lengths, strict=True)),
            planned_tokens=round(self._shard.prefill_tokens * of_rows / of_shard),
            computed_prompt_tokens=sum(
                one.prompt_tokens - one.num_cached_tokens for one in outputs if one.finish_reason != "error"
            ),
            generated_tokens=sum(len(one.token_ids) for one in outputs),
            row_errors=sum(self._num_rows[number] for number in failed),
        )

    def _planned(self, shares: list[Share]) -> list[Share]:
        """The shard's planned tokens are those of its shares: what rounding lost is the last one's."""
        lost = self._shard.prefill_tokens - sum(share.planned_tokens for share in shares)
        return [*shares[:-1], replace(shares[-1], planned_tokens=shares[-1].planned_tokens + lost)]

    def _commit(
        self, table: pa.Table, shares: Sequence[Share], *, is_checkpoint: bool = False
    ) -> tuple[ShardManifest, pa.Table]:
        staged, part = stage_part(self._run.folder, self._shard.shard_id, table)
        fingerprint = self._run.fingerprint
        own = describe(self._plan_id, self._shard, fingerprint, part, shares, is_checkpoint=is_checkpoint)
        with self._commits.committing():
            commit_part(self._run.folder, staged, part)
            manifest = commit_manifest(self._run.folder, own)
        return manifest, table if manifest.files == own.files else self._read(manifest)
