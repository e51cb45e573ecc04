"""What a step made for a sequence that generates."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the sampler chose for a sequence, and whether that ends it, as an error if it `failed`.

    Behind it may be `accepted` tokens, which followed from drafts that were right, or tokens that a grammar forces.
    """

    token_id: int
    finished: bool
    accepted: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()
    failed: bool = False

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All of them, in the text's order."""
        return (self.token_id, *self.accepted, *self.forced)

    def then(self, behind: "Sampled") -> "Sampled":
        """Both, where `behind` was sampled behind this."""
        return Sampled(self.token_id, behind.finished, (*self.accepted, behind.token_id), behind.forced, behind.failed)
