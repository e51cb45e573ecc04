"""Random numbers that depend on a key and a counter alone, for all rows of a batch at once.

Philox4x64 with ten rounds (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011, section 3.3), the
generator that `numpy.random.Philox` is: number for number the same.
"""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

ROUNDS = 10
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW, _HALF = np.uint64(2**32 - 1), np.uint64(32)


def words(seeds: Words, streams: Words, counters: Words) -> Words:
    """(rows,): the first 64 bits of each row's generator, `seeds` and `streams` its key."""
    with np.errstate(over="ignore"):
        # numpy counts before it makes a block.
        block = [counters + np.uint64(1), *(np.zeros_like(counters) for _ in range(3))]
        key = [seeds, streams]
        for number in range(ROUNDS):
            if number:
                key = [word + np.uint64(step) for word, step in zip(key, WEYL, strict=True)]
            block = _round(block, key)
    return block[0]


def _round(block: list[Words], key: list[Words]) -> list[Words]:
    high_0, low_0 = _product(block[0], MULTIPLIERS[0])
    high_1, low_1 = _product(block[2], MULTIPLIERS[1])
    return [high_1 ^ block[1] ^ key[0], low_1, high_0 ^ block[3] ^ key[1], low_0]


def _product(words: Words, factor: int) -> tuple[Words, Words]:
    """The upper and the lower 64 bits of a product, from products of 32 bits."""
    upper, lower = words >> _HALF, words & _LOW
    by_upper, by_lower = np.uint64(factor >> 32), np.uint64(factor & (2**32 - 1))
    middle = (lower * by_lower >> _HALF) + (upper * by_lower & _LOW) + lower * by_upper
    high = upper * by_upper + (upper * by_lower >> _HALF) + (middle >> _HALF)
    return high, words * np.uint64(factor)
