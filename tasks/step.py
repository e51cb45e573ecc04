"""The thin Prefect task around a step's plain function."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE

P = ParamSpec("P")
R = TypeVar("R")


def as_task(function: Callable[P, R], name: str, **options: Any) -> Task[P, R]:
    """Nothing is persisted or cached by Prefect: the manifests say what is done. A run of it has its name alone."""
    return Task(function, name=name, task_run_name=name, persist_result=False, cache_policy=NO_CACHE, **options)
