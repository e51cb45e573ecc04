"""Mutations of files, drawn from a seed: what every reader of a file is held to, in CI and, many more, nightly."""

import random
from collections.abc import Sequence

import pytest

# Of all readers together: 5,000 in CI, 100,000 nightly.
NIGHTLY_TIMES = 20

# What is put into a file, or in a piece's place.
PIECES = (
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"\r", b"\r\n", b'"', b"'", b",", b";", b"\t"),
    *(b"{", b"}", b"[" * 3000, b"\\", b"\\ud800", b"null", b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"-", b":"),
    *(b"a" * 70_000, b"sep=;\n", b"text", b"id", b"PAR1", b"\x7f\xff\xff\xff", b"\xff" * 8, b"\x80" * 9),
)


def seeds(parts: int) -> Sequence[object]:
    """Parameters of a test that runs a part of its mutations from a seed: `parts` in CI, the others nightly."""
    nightly = range(parts, parts * NIGHTLY_TIMES)
    return [*range(parts), *(pytest.param(seed, marks=pytest.mark.nightly) for seed in nightly)]


def mutated(draw: random.Random, content: bytes) -> bytes:
    """One to four changes: a byte, a piece put in, a piece lost or twice, the end cut off, another encoding."""
    for _ in range(draw.randint(1, 4)):
        at, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
        kind = draw.randrange(6)
        if kind <= 1:
            at = min(at, len(content) - 1)
            content = content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
        elif kind == 2:
            content = content[:at] + draw.choice(PIECES) + content[at:]
        elif kind == 3:
            content = content[:at] + content[at:end] * draw.choice([0, 2]) + content[end:]
        elif kind == 4 and draw.random() < 0.2:
            content = content[:at]
        elif kind == 5 and draw.random() < 0.1:
            content = content.decode("utf-8", "replace").encode(draw.choice(["utf-16", "utf-8-sig", "utf-16-le"]))
        content = content or b"\n"
    return content
