"""The tokens that each text of a step may go on with, found while the model computes."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from llguidance import LLExecutor
from numpy.typing import NDArray

from engine.grammar.matcher import Matcher

# (rows, words): bit i % 32 of word i // 32 says whether token i may come next.
Masks = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class PendingMasks:
    """Masks on their way; `of` waits for them."""

    places: dict[int, int]
    made: "Future[Masks] | None"

    def of(self, key: int) -> NDArray[np.int32] | None:
        """(words,): the mask of a sequence; None where it has none."""
        if self.made is None or key not in self.places:
            return None
        mask: NDArray[np.int32] = self.made.result()[self.places[key]]
        return mask

    def allows(self, key: int, token: int) -> bool:
        """Whether a sequence's mask has the token; a place that is no token is not in any."""
        mask = self.of(key)
        return mask is not None and token >= 0 and bool(mask[token // 32] >> token % 32 & 1)


class MaskMaker:
    """One thread hands a step's matchers to the library's own, which need no interpreter."""

    def __init__(self, num_words: int) -> None:
        self._num_words = num_words
        self._executor = LLExecutor()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trunkline-masks")

    def begin(self, matchers: Sequence[tuple[int, Matcher]]) -> PendingMasks:
        """Of matchers by key, which nobody else touches until the masks are there."""
        places = {key: place for place, (key, _) in enumerate(matchers)}
        return PendingMasks(places, self._thread.submit(self._fill, [matcher for _, matcher in matchers]))

    def _fill(self, matchers: Sequence[Matcher]) -> Masks:
        masks = np.zeros((len(matchers), self._num_words), dtype=np.int32)
        free = [(matcher.machine, place) for place, matcher in enumerate(matchers) if matcher.forced is None]
        if free:
            self._executor.unsafe_compute_mask_ptr(free, masks.ctypes.data, masks.strides[0], len(masks))
        for place, matcher in enumerate(matchers):
            if matcher.forced is not None:
                _allow(masks[place], (matcher.forced,))
            elif matcher.own_ends and matcher.accepts:
                _allow(masks[place], matcher.own_ends)
        return masks


NO_MASKS = PendingMasks({}, None)


def _allow(mask: NDArray[np.int32], tokens: Sequence[int]) -> None:
    for token in tokens:
        mask.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)
