"""The task types that there are."""

from collections.abc import Sequence
from typing import Any

from engine.request import RequestOutput
from tasks.job.task import Task
from tasks.request.ask import parse_ask
from tasks.request.choice import Choice
from tasks.request.classify import Classify
from tasks.request.embed import Embed
from tasks.request.generate import Generate
from tasks.request.loglikelihood import Loglikelihood
from tasks.request.loglikelihood_rolling import LoglikelihoodRolling
from tasks.request.perplexity import Perplexity
from tasks.request.score import Score
from tasks.request.task_type import TaskType
from tasks.storage.parts import StoredRequest

TASK_TYPES: dict[str, TaskType] = {
    one.name: one
    for one in (
        Choice(),
        Classify(),
        Embed(),
        Generate(),
        Loglikelihood(),
        LoglikelihoodRolling(),
        Perplexity(),
        Score(),
    )
}


def task_type_of(task: Task) -> TaskType:
    return TASK_TYPES[task.type]


def answer_of(asked: StoredRequest, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """The columns of a result that are its type's own; no output is an error."""
    ask = parse_ask(asked.ask)
    return task_type_of(ask.task).result(ask, asked.label_texts, outputs)
