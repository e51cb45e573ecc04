"""The texts that decode, and the step that follows for them from the one before."""

from engine.scheduling.decode_rows import DecodeRows
from engine.scheduling.scheduler_output import SchedulerOutput
from engine.scheduling.sequence import Sequence


class Decoding:
    """Texts that take a token a step until they end, by key. `free` ones always can; others wait for their last token:
    structured ones, and those whose own tokens are computed again.

    While the same of them go on, or fewer, a step follows from the one before, and no text is visited for it.
    """

    def __init__(self, ahead: int) -> None:
        """Segments of steps that follow from each other cover `ahead` more; 0: none does."""
        self.free: dict[int, Sequence] = {}
        self._waiting: dict[int, Sequence] = {}
        self._ahead = ahead
        self._rows: DecodeRows | None = None

    def __len__(self) -> int:
        return len(self.free) + len(self._waiting)

    @property
    def texts(self) -> list[Sequence]:
        return [*self.free.values(), *self._waiting.values()]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens so far of each text; may be asked by any thread."""
        return tuple(len(text.token_ids) for texts in (self.free, self._waiting) for text in [*texts.values()])

    def join(self, sequence: Sequence) -> None:
        """It takes further steps, free or not as it is now."""
        texts, others = (self._waiting, self.free) if sequence.waits_for_tokens else (self.free, self._waiting)
        others.pop(sequence.key, None)
        texts[sequence.key] = sequence

    def leave(self, sequence: Sequence) -> None:
        """It takes no further step, if it took any."""
        self.free.pop(sequence.key, None)
        self._waiting.pop(sequence.key, None)

    @property
    def ready(self) -> dict[int, Sequence]:
        """Those that are not free and whose last token is known."""
        return {key: sequence for key, sequence in self._waiting.items() if sequence.can_decode}

    def follow(self) -> SchedulerOutput | None:
        """A step of all that can decode, its tokens pending. None: it has to be built, of texts that `part` first."""
        output = self._rows.next(self._all_ready) if self._rows is not None else None
        if self._rows is not None and output is not None:
            for sequence in self._rows.complete():
                self.leave(sequence)
        return output

    def go_together(self, built: SchedulerOutput) -> SchedulerOutput:
        """`built`, which is of all that can decode and of nothing else, as the step that others may follow."""
        if not self._ahead:
            return built
        self._rows = DecodeRows(built, self._all_ready, self._ahead)
        return self._rows.output

    def part(self) -> None:
        """Each text goes on alone, as steps that are built take it."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    @property
    def _all_ready(self) -> dict[int, Sequence]:
        return self.free | self.ready if self._waiting else self.free
