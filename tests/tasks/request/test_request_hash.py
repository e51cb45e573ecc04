"""Names of requests decide what an output folder has an answer for: they are made as the first release made them, for
ever. Arithmetic that answers otherwise is a word more in them.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.request.ask import Ask
from tasks.request.request_hash import RequestHasher
from tasks.request.requests import NewRequest, RequestBuilder
from tasks.request.task_type import RowRequest
from tasks.source.source_rows import SourceBatch
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import make_run
from tests.tasks.conftest import JobMaker
from tests.tasks.fakes import ByteTokenizer

ROWS: dict[str, list[Any]] = {"text": ["one", "two "], "options": [["a", " b"], ["c", "dd"]]}


@pytest.fixture(autouse=True)
def _first_numerics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.storage.run.NUMERICS", 1)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (
            {"task": {"type": "generate"}, "sampling": {"max_tokens": 5, "stop": "x"}},
            ["a935c323ba97ecf4213def518f3798a1", "e571ecfad683ad46f2707191a5e23947"],
        ),
        (
            {"task": {"type": "generate"}, "sampling": {"temperature": 1.0}},
            ["1293942a5d0d1497c0520e99c7e1f987", "4d461398f24075dfe540f1932aa82499"],
        ),
        (
            {"task": {"type": "choice", "labels": [" yes", " no"]}},
            ["e416aab09fbcd0cc11ef945fe6003837", "da0929e7ca6bbe7c8ebe1db31c107c1b"],
        ),
        (
            {"task": {"type": "choice", "labels_column": "options"}},
            ["1165cfacb0552b91af840c0b99ffa635", "704bc0ccb3bb8dc8f36fed7c8405c455"],
        ),
    ],
    ids=["generate", "generate, drawn afresh", "choice", "choice of each row's"],
)
def test_a_request_keeps_its_name(job_of: JobMaker, changes: dict[str, Any], names: list[str]) -> None:
    job = job_of([{"text": "one"}], **changes)
    run = make_run(job, OutputFolder(job.output_folder))
    assert run.model.fingerprint == "bfbf105e91820ba70147a4cbcc0d38cb"
    builder = RequestBuilder(run, ("text",), ByteTokenizer())  # type: ignore[arg-type]
    built = builder.build(SourceBatch(0, pa.record_batch(ROWS)), ["0", "1"])
    assert [one.request_hash for one in built if isinstance(one, NewRequest)] == names


def test_an_adapter_is_a_part_of_the_name(job_of: JobMaker) -> None:
    """Requests without one keep theirs."""
    job = job_of([{"text": "one"}], task={"type": "choice", "labels": [" yes", " no"]})
    hasher = RequestHasher(make_run(job, OutputFolder(job.output_folder)))
    ids = np.frombuffer(b"one", dtype=np.uint8).astype(np.int32)
    labels = tuple(np.frombuffer(label, dtype=np.uint8).astype(np.int32) for label in (b" yes", b" no"))
    plain = RowRequest(ids, labels=labels, label_texts=(" yes", " no"))
    ask = Ask(job.task, job.sampling)
    names = [hasher(replace(plain, adapter=adapter), ask, "0") for adapter in (None, "x", "y", "")]
    assert names[0] == "e416aab09fbcd0cc11ef945fe6003837"
    assert len(set(names)) == 4
