"""Imports of modules by the thousand, without the collections of garbage among them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """For a process of our own, which keeps until its end what it imports here.

    Each import adds objects and leaves no garbage, and Python looks through all of them again and again: a fifth of the
    time in which torch and transformers are imported. Later collections leave out what is there at the end.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
