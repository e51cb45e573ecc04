"""numpy's own generator is the oracle."""

import numpy as np
from numpy.random import Philox

from engine.forward.philox import words


def test_words_are_numpys() -> None:
    drawn = np.random.default_rng(0)
    seeds, streams, counters = drawn.integers(0, 2**64, (3, 300), dtype=np.uint64)
    seeds[:100], counters[:200] = np.arange(100), np.arange(200)
    counters[-1] = 2**64 - 2
    wanted = [
        int(Philox(key=np.array([seed, stream], dtype=np.uint64), counter=int(counter)).random_raw())
        for seed, stream, counter in zip(seeds, streams, counters, strict=True)
    ]
    assert words(seeds, streams, counters).tolist() == wanted


def test_words_depend_on_seed_stream_and_counter_alone() -> None:
    keys = np.array([(s, t, c) for s in (0, 1, 2**63) for t in (0, 5) for c in range(50)], dtype=np.uint64).T
    values = words(*keys)
    assert len(set(values.tolist())) == 300
    assert values[::-1].tolist() == words(*keys[:, ::-1]).tolist()
    assert abs(values.astype(np.float64).mean() / 2**64 - 0.5) < 0.06
