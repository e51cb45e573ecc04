"""What a step made for a sequence that generates."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the sampler chose for a sequence, and whether that ends it.

    `more` are tokens behind it: those that followed from drafts which were right.
    """

    token_id: int
    finished: bool
    more: tuple[int, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        return (self.token_id, *self.more)

    def then(self, behind: "Sampled") -> "Sampled":
        """Both, where `behind` was sampled behind this."""
        return Sampled(self.token_id, behind.finished, (*self.more, *behind.token_ids))
