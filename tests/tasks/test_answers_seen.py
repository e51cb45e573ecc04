"""Lengths of a run's answers: of those that ended in it, and of those that an earlier run of the job left."""

import pyarrow.parquet as pq
import pytest

from engine.request import RequestOutput
from tasks.answers_seen import MOST_EARLIER, AnswersSeen, earlier_answers
from tasks.storage.run import open_run
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import run_steps


def output(reason: str, tokens: int) -> RequestOutput:
    return RequestOutput("r", reason, 5, token_ids=tuple(range(tokens)))


def test_who_was_cut_or_goes_on_is_at_least_so_long() -> None:
    """Of 4 answers one ended at 2 tokens; one was cut at 4, and two have 1 and 4: 2/3 pass 2 tokens."""
    answers = AnswersSeen()
    for one in (output("stop", 2), output("length", 4), output("scored", 0), output("error", 3)):
        answers.take(one)
    assert answers.count == 2
    assert answers.lengths((1, 4)).going_on(4) == pytest.approx([1, 1, 2 / 3, 2 / 3])
    assert answers.lengths((1, 4)).mean(4) == pytest.approx(10 / 3)


def test_earlier_answers_are_no_answers_of_this_run() -> None:
    answers = AnswersSeen([(3, "stop"), (3, "stop"), (8, "length")])
    assert answers.count == 0
    assert answers.lengths(()).going_on(5) == pytest.approx([1, 1, 1, 1 / 3, 1 / 3])


def test_tokens_that_are_left_of_answers_that_go_on() -> None:
    """All ended at 4: who has 1 gets 3 yet, and who has more than any had gets one at least."""
    lengths = AnswersSeen([(4, "stop")] * 3).lengths(())
    assert lengths.tokens_left((1,), 9) == pytest.approx(3)
    assert lengths.tokens_left((), 9) == 0
    assert lengths.tokens_left((8, 8), 9) == pytest.approx(2)


def test_a_part_that_is_damaged_tells_nothing(job_of: JobMaker) -> None:
    """Its manifest, its length and its other columns may be sound; the next run sets it aside."""
    job = job_of([{"id": "a", "text": "row"}], task={"type": "generate"}, sampling={"max_tokens": 3})
    run_steps(job)
    [part] = (job.output_folder / "parts").iterdir()
    with open_run(job) as run:
        assert earlier_answers(run, run.folder) == [(3, "length")]
        group, content = pq.read_metadata(part).row_group(0), bytearray(part.read_bytes())
        columns = [group.column(place) for place in range(group.num_columns)]
        [tokens] = [one for one in columns if one.path_in_schema == "completion_tokens"]
        first = tokens.dictionary_page_offset or tokens.data_page_offset
        content[first : first + 8] = b"\xff" * 8
        part.write_bytes(content)
        assert earlier_answers(run, run.folder) == []


def test_the_newest_shard_of_the_same_job_tells(job_of: JobMaker, engine: FakeWorkers) -> None:
    rows = [{"id": f"r{i}", "text": f"row {i}"} for i in range(100)]
    asked = {"task": {"type": "generate"}, "sampling": {"max_tokens": 3}}
    job = job_of(rows, source={"id": "id"}, **asked)
    with open_run(job) as run:
        assert earlier_answers(run, run.folder) == []
    run_steps(job)
    with open_run(job) as run:
        found = earlier_answers(run, run.folder)
        assert len(found) == MOST_EARLIER
        assert set(found) <= {(tokens, reason) for tokens in range(4) for reason in ("stop", "length")}
    with open_run(job_of(rows, source={"id": "id"}, task={"type": "generate"}, sampling={"max_tokens": 4})) as run:
        assert earlier_answers(run, run.folder) == []
