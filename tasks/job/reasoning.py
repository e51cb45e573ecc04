"""What a model writes before its answer, and between which marks."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from tasks.job.job_part import Name, Part


class Reasoning(Part):
    """`generate`: the reasoning before an answer, which gets a column of its own; found by the model's own marks."""

    start: Name | None = Field(default=None, description="What begins it, such as `<think>`; else the model's own.")
    end: Name | None = Field(default=None, description="What ends it, such as `</think>`.")
    opened: bool | None = Field(default=None, description="Whether prompts end inside of it; else that is looked up.")
    split: bool = Field(default=True, description="false: it stays in the text.")

    @classmethod
    def faults(cls, given: Mapping[str, Any]) -> Iterator[str]:
        if (given.get("start") is None) != (given.get("end") is None):
            yield "start and end go together; give both, or neither"

    @property
    def is_known(self) -> bool:
        """Whether all is said that `divide` asks for."""
        return self.split and self.start is not None and self.opened is not None

    def divide(self, text: str) -> tuple[str | None, str]:
        """The reasoning, None for a text that has none, and the answer. A text cut inside it has no answer."""
        assert self.start is not None, self
        assert self.end is not None, self
        beginning = text.lstrip()
        if not self.opened and not beginning.startswith(self.start):
            return None, text
        inside, _, answer = beginning.removeprefix(self.start).partition(self.end)
        return inside.strip(), answer.lstrip()
