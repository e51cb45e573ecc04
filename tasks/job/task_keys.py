"""Which keys belong to which task type."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.job.job_part import Part, at_most_one, exactly_one
from tasks.job.sampling import Sampling

_ITEMS = ("items", "items_column")


@dataclass(frozen=True, slots=True)
class TaskKeys:
    """What a job may say beside a task's type: exactly one of `one_of` (or none, with `has_default`), and `more`.

    A type that `samples` heeds all of `sampling`; one that `reads_prompt` heeds `sampling.prompt_logprobs` alone.
    """

    one_of: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    has_default: bool = False
    samples: bool = False
    reads_prompt: bool = False

    @property
    def all(self) -> frozenset[str]:
        return frozenset((*self.one_of, *self.more))

    def heeded(self, sampling: Sampling) -> Sampling:
        """What of it has an effect on the type's answers."""
        if self.samples:
            return sampling
        return Sampling(prompt_logprobs=sampling.prompt_logprobs) if self.reads_prompt else Sampling()

    def beside(self, row: Mapping[str, Any]) -> set[str]:
        """The type's keys that a row leaves to the job: not those that one of the row's own excludes."""
        excluded = {key for group in (self.one_of, _ITEMS) if any(key in row for key in group) for key in group}
        return set(self.all - excluded)


TASK_KEYS = {
    "choice": TaskKeys(("labels", "labels_column")),
    "classify": TaskKeys(("labels", "labels_column"), ("variants",)),
    "embed": TaskKeys(more=("pooling", "normalize", "dimensions")),
    "generate": TaskKeys(more=("reasoning",), samples=True),
    "loglikelihood": TaskKeys(("continuation_column",)),
    "loglikelihood_rolling": TaskKeys(more=("context_len",)),
    "perplexity": TaskKeys(reads_prompt=True),
    "score": TaskKeys(
        ("labels", "labels_column", "label_token_ids"),
        ("variants", *_ITEMS, "item_first", "apply_softmax"),
        has_default=True,
    ),
}


def keys_of(task_type: object) -> TaskKeys | None:
    """The keys of a type, which may be anything; None where there is no such type."""
    return TASK_KEYS.get(task_type) if isinstance(task_type, str) else None


def key_faults(given: Mapping[str, Any], defaults: Mapping[str, Any], *, is_mixed: bool) -> Iterator[str]:
    """Keys that exclude each other, that another type has, or that are missing; with `is_mixed`, rows have any type.

    One that has its default says nothing.
    """
    own = keys_of(given.get("type"))
    if own is None:
        return
    yield from at_most_one(given, _ITEMS)
    groups = dict.fromkeys(keys.one_of for keys in TASK_KEYS.values()) if is_mixed else (own.one_of,)
    for group in groups:
        needs_one = group and not is_mixed and not own.has_default
        yield from exactly_one(given, group) if needs_one else at_most_one(given, group)
    for key in () if is_mixed else _foreign(own):
        if given.get(key) is not None and _plain(given[key]) != _plain(defaults[key]):
            types = [name for name, keys in TASK_KEYS.items() if key in keys.all]
            yield f"{key} {'belong' if key.endswith('s') else 'belongs'} to type: {_listed(types)}"


def _plain(value: object) -> object:
    """As JSON has it: what is checked may be that, as a stored job or a flow's parameters are."""
    if isinstance(value, Part):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _foreign(own: TaskKeys) -> list[str]:
    return sorted({key for keys in TASK_KEYS.values() for key in keys.all} - own.all)


def _listed(names: list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
