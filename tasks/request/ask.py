"""What a row asks: its task, and the sampling under which it is answered."""

import json
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from engine.sampling_params import SamplingParams
from tasks.job.sampling import Sampling
from tasks.job.task import Task

# More ways to ask than most tables have; a table with a seed a row has one each, which need not be kept.
_KEPT_ASKS = 4096


@dataclass(frozen=True)
class Ask:
    """The job's `task` and `sampling`, with what the row's own cells say over them; neither names a column for it."""

    task: Task
    sampling: Sampling

    @cached_property
    def text(self) -> str:
        """As JSON, which `parse_ask` reads: equal for equal asks. Keys that have their default are left out."""
        parts = {"task": self.task, "sampling": self.sampling}
        content = {name: part.model_dump(mode="json", exclude_defaults=True) for name, part in parts.items()}
        return json.dumps(content, sort_keys=True)

    def params(self, max_tokens: int) -> SamplingParams:
        """The engine's parameters for a text of at most `max_tokens`, which is what the context leaves."""
        if max_tokens not in self._params:
            whole = self.sampling.params()
            least = min(whole.min_tokens, max_tokens)
            self._params[max_tokens] = replace(whole, max_tokens=max_tokens, min_tokens=least)
        return self._params[max_tokens]

    @cached_property
    def _params(self) -> dict[int, SamplingParams]:
        return {}


@lru_cache(maxsize=_KEPT_ASKS)
def parse_ask(text: str) -> Ask:
    """The ask that wrote this `text`."""
    content = json.loads(text)
    return Ask(Task.model_validate(content["task"]), Sampling.model_validate(content["sampling"]))
