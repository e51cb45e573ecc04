"""The output folder that docs/queries.md asks: tickets that a model sorted, twice, over answers made up here."""

import pyarrow as pa
import pytest

from engine.request import LabelScore, Request, RequestOutput
from tasks.job.job import ScoringJob
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run_record import read_records, update_record
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import FakeWorkers
from tests.tasks.steps import run_steps, use_fakes

LABELS = ["billing", "delivery", "other"]
# Each with its queue, the truth, and how much likelier than any other label its answer is in each of two runs.
TICKETS = [
    ("t-01", "The invoice lists one item twice.", "north", "billing", ("billing", 3.0), ("billing", 2.5)),
    ("t-02", "My card was charged two times.", "north", "billing", ("billing", 2.0), ("billing", 2.2)),
    ("t-03", "The parcel never came.", "north", "delivery", ("delivery", 4.0), ("delivery", 4.1)),
    ("t-04", "The box was open when it came.", "south", "delivery", ("delivery", 1.5), ("other", 0.6)),
    ("t-05", "When do you open on Sunday?", "south", "other", ("delivery", 0.1), ("other", 0.2)),
    ("t-06", "I was billed for a return.", "south", "billing", ("other", 0.4), ("other", 0.3)),
    ("t-07", "Thank you for the quick answer.", "south", "other", ("other", 2.6), ("other", 2.4)),
    ("t-08", "The parcel never came.", "west", "delivery", ("delivery", 4.0), ("delivery", 4.1)),
    ("t-09", None, "west", "other", None, None),
]


class Sorting(FakeWorkers):
    """Answers as the first or the second run does."""

    def __init__(self, run: int) -> None:
        super().__init__()
        self._answers = {ticket[1]: ticket[4 + run] for ticket in TICKETS}

    def _answer(self, request: Request) -> RequestOutput:
        prompt = request.prompt_token_ids
        answer = self._answers[bytes(prompt.astype("uint8")).decode()]
        assert isinstance(answer, tuple), answer
        label, lead = answer
        others = [one for one in LABELS if one != label]
        scores = tuple(
            LabelScore(-1.0 if one == label else -1.0 - lead - others.index(one), is_greedy=False) for one in LABELS
        )
        return RequestOutput(request.request_id, "scored", len(prompt), label_scores=scores)


def write_tickets(monkeypatch: pytest.MonkeyPatch, job_of: JobMaker) -> ScoringJob:
    """Two runs over the tickets, whose names and times are always the same."""
    monkeypatch.setattr("tasks.storage.run.new_run_id", lambda sequence: f"run-{sequence:06d}-{sequence:06x}")
    names = ["ticket", "text", "queue", "truth"]
    table = pa.Table.from_pylist([dict(zip(names, ticket[:4], strict=True)) for ticket in TICKETS])
    job = job_of(
        table, source={"id": "ticket", "keep": ["text", "queue", "truth"]}, task={"type": "choice", "labels": LABELS}
    )
    for run in range(2):
        use_fakes(monkeypatch, Sorting(run))
        run_steps(job, full=run > 0)
    folder = OutputFolder(job.output_folder)
    for record in read_records(folder):
        update_record(folder, record.run_id, seconds=4.0 / record.sequence)
    return job
