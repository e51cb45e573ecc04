"""The harness's bars: one a call, begun when its first answer comes, so that it stands below that of the tokenizing."""

from types import TracebackType
from typing import Self

from tqdm import tqdm


class LazyBar:
    """As a context it is closed at the end."""

    def __init__(self, total: int, words: str, disabled: bool) -> None:
        self._total = total
        self._words = words
        self._disabled = disabled
        self._bar: tqdm[None] | None = None

    def update(self) -> None:
        if self._bar is None:
            self._bar = tqdm(total=self._total, desc=self._words, disable=self._disabled)
        self._bar.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: "type[BaseException] | BaseException | TracebackType | None") -> None:
        if self._bar is not None:
            self._bar.close()
