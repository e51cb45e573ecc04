"""What a run would ask the model, seen before it runs."""

from pathlib import Path

import pytest

from engine.errors import UserError
from tasks.preview import Preview, preview_rows
from tasks.source.row_error import BAD_LABELS, EMPTY_PROMPT, TEMPLATE_ERROR, RowError
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import run_steps

ROWS = [{"id": f"r{i}", "text": f"text {i}" if i != 1 else " ", "options": ["a", "b"] if i else []} for i in range(5)]


def test_the_first_rows_with_their_errors(job_of: JobMaker) -> None:
    job = job_of(ROWS, source={"id": "id"}, task={"type": "generate"})
    assert preview_rows(job, 3) == [
        Preview("r0", "text 0", 6),
        Preview("r1", error=RowError(EMPTY_PROMPT, "the prompt is white space alone")),
        Preview("r2", "text 2", 6),
    ]
    assert not job.output_folder.exists()


def test_a_row_by_its_id(job_of: JobMaker) -> None:
    assert preview_rows(job_of(ROWS, source={"id": "id"}, task={"type": "generate"}), 3, "r4") == [
        Preview("r4", "text 4", 6)
    ]
    assert preview_rows(job_of(ROWS, task={"type": "generate"}), 1, "4") == [Preview("4", "text 4", 6)]
    with pytest.raises(UserError, match="--id: no row has 'r5'"):
        preview_rows(job_of(ROWS, source={"id": "id"}), 3, "r5")


def test_chat_and_labels_are_those_that_are_scored(job_of: JobMaker, engine: FakeWorkers) -> None:
    job = job_of(
        ROWS,
        source={"id": "id"},
        prompt={"column": "text", "chat": True},
        task={"type": "choice", "labels_column": "options"},
    )
    bad, _, good = preview_rows(job, 3)
    assert bad == Preview("r0", error=RowError(BAD_LABELS, "there are no labels"))
    assert (good.prompt, good.tokens, good.labels) == ("<|user|>text 2<|end|>\n<|bot|>", 10, ("a", "b"))
    run_steps(job)
    asked = {len(request.prompt_token_ids) for work in engine.works for request in work.requests}
    assert asked == {10}


def test_no_more_is_read_than_is_shown(job_of: JobMaker, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n' * 5000 + "broken")
    job = job_of(source={"jsonl": str(tmp_path / "t.jsonl")}, task={"type": "generate"})
    assert preview_rows(job, 2) == [Preview("0", "a", 1), Preview("1", "a", 1)]
    with pytest.raises(UserError, match="line 5001 is not a JSON object"):
        run_steps(job)


def test_a_template_that_fails_says_so(job_of: JobMaker) -> None:
    [one] = preview_rows(job_of([{"o": {"a": 1}}], prompt={"template": "{{ o.items }}"}), 1)
    assert one.error == RowError(
        TEMPLATE_ERROR, "the template fails on this row: 'dict object' has no attribute 'items'"
    )
