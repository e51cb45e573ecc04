"""Prompts as one array of tokens: sorted and compared without a Python object a token, nor an array a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from engine.request import TokenIds

Ints = NDArray[np.int64]

# Tokens of two prompts that are compared at a time.
_WIDTH = 64


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """Prompt r is `token_ids[offsets[r] : offsets[r + 1]]`."""

    token_ids: TokenIds
    offsets: Ints

    @classmethod
    def of(cls, prompts: Sequence[TokenIds]) -> "Prompts":
        offsets = np.zeros(len(prompts) + 1, dtype=np.int64)
        np.cumsum([len(prompt) for prompt in prompts], out=offsets[1:])
        tokens = np.concatenate(prompts) if prompts else np.empty(0, dtype=np.int32)
        return cls(tokens.astype(np.int32, copy=False), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, r: int) -> TokenIds:
        return self.token_ids[self.offsets[r] : self.offsets[r + 1]]

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)

    def choose(self, rows: Ints) -> "Prompts":
        """These prompts; all, in their order, are this object."""
        return self if len(rows) == len(self) else Prompts.of([self[r] for r in rows.tolist()])

    def sorted_order(self, adapters: Ints | None = None) -> Ints:
        """By adapter, then by tokens; equal ones as given."""
        # Big-endian bytes compare as the tokens do, at the speed of memcmp.
        tokens = self.token_ids.astype(">u4").tobytes()
        bounds = (4 * self.offsets).tolist()
        keys = [tokens[start:end] for start, end in pairwise(bounds)]
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
        return order if adapters is None else order[np.argsort(adapters[order], kind="stable")]

    def common_prefixes(self, one: Ints, other: Ints) -> Ints:
        """How many tokens the prompts `one[i]` and `other[i]` begin with alike."""
        longest = np.minimum(self.lengths[one], self.lengths[other])
        common = np.zeros_like(longest)
        windows = sliding_window_view(np.append(self.token_ids, np.zeros(_WIDTH, dtype=np.int32)), _WIDTH)
        pairs = np.flatnonzero(longest)
        while len(pairs):
            done = common[pairs]
            differ = windows[self.offsets[one[pairs]] + done] != windows[self.offsets[other[pairs]] + done]
            at = differ.argmax(axis=1)
            alike = ~differ[np.arange(len(pairs)), at]
            common[pairs] = np.minimum(done + np.where(alike, _WIDTH, at), longest[pairs])
            pairs = pairs[alike & (common[pairs] < longest[pairs])]
        return common
