"""The task types that there are."""

from tasks.job.job import ScoringJob
from tasks.request.choice import Choice
from tasks.request.generate import Generate
from tasks.request.loglikelihood import Loglikelihood
from tasks.request.task_type import TaskType

TASK_TYPES: dict[str, TaskType] = {
    one.name: one
    for one in (
        Choice(),
        Generate(),
        Loglikelihood(),
    )
}


def task_type_of(job: ScoringJob) -> TaskType:
    return TASK_TYPES[job.task.type]
