"""A table that is described instead of read: groups of prompts that have so many tokens in common, and so many not."""

from dataclasses import dataclass, fields, replace

import numpy as np

from engine.errors import UserError
from engine.request import Request
from engine.sampling_params import SamplingParams

_EXAMPLE = "groups=8,degree=16,prefix=1024,distinct=64,output=32"


@dataclass(frozen=True, slots=True)
class DescribedTable:
    """`groups` prefixes of `prefix` tokens, each before `degree` prompts of `distinct` tokens more, which generate
    `output` tokens each: `engine.bench.workload generate` in numbers.
    """

    groups: int
    degree: int
    prefix: int
    distinct: int
    output: int

    @classmethod
    def parse(cls, text: str) -> "DescribedTable":
        """Reads `groups=…,degree=…,prefix=…,distinct=…,output=…`. Raises UserError where it is not that."""
        names = [field.name for field in fields(cls)]
        given = dict(part.partition("=")[::2] for part in text.split(","))
        if sorted(given) != sorted(names) or not all(value.isascii() and value.isdigit() for value in given.values()):
            raise UserError(f"--table {text}: write it as {_EXAMPLE}")
        table = cls(**{name: int(value) for name, value in given.items()})
        if not (table.groups and table.degree and table.distinct and table.output):
            raise UserError(f"--table {text}: only prefix may be 0")
        return table

    @property
    def rows(self) -> int:
        return self.groups * self.degree

    def largest_share(self, devices: int) -> "DescribedTable":
        """What the busiest of so many devices gets, where groups stay whole. Others have the same, or a group less."""
        return replace(self, groups=-(self.groups // -devices))

    def requests(self) -> list[Request]:
        """Prompts begin alike within a group alone: which tokens they are made of decides nothing else."""
        params = SamplingParams(max_tokens=self.output, ignore_eos=True)
        own = np.zeros(self.distinct, dtype=np.int32)
        requests = []
        for group in range(self.groups):
            prefix = np.full(self.prefix, group, dtype=np.int32)
            for place in range(self.degree):
                row = group * self.degree + place
                # Where there is no prefix every row begins with a token of its own.
                behind = own.copy()
                behind[0] = row
                requests.append(Request(str(row), np.concatenate([prefix, behind]), params))
        return requests
