"""A manifest's content: which part was committed, of which shard, and what each run did of it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from engine.plan import Shard


@dataclass(frozen=True, slots=True)
class PartFile:
    """A file in `parts/`, by name alone."""

    name: str
    sha256: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Share:
    """What one run did of a shard.

    Tokens are of its requests, each counted once, but `row_prompt_tokens`: of their rows. `errors` are requests;
    `row_errors` their rows, None where an earlier version counted none. `from_store` of its requests were taken from
    the scoring store, and no token of them was computed.
    """

    run_id: str
    requests: int
    rows: int
    errors: int
    seconds: float
    prompt_tokens: int
    row_prompt_tokens: int
    planned_tokens: int
    computed_prompt_tokens: int
    generated_tokens: int
    row_errors: int | None = None
    from_store: int = 0

    def __add__(self, other: "Share") -> "Share":
        """Of the same run."""
        assert self.run_id == other.run_id, (self.run_id, other.run_id)
        sums = {name: (getattr(self, name) or 0) + (getattr(other, name) or 0) for name in _SUMMED}
        return Share(run_id=self.run_id, **sums)


_SUMMED = [one.name for one in fields(Share) if one.name != "run_id"]


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """A committed shard, or a checkpoint: rows of one that were committed before the others.

    What was taken from the scoring store has a manifest of its own, which is no shard's. Figures are of all its
    `shares`, and those of `run_id` alone where there are none, as earlier versions wrote it.
    `plan_id` and `shard_id` together name the work: a retried shard has an older one's id under a new plan.
    """

    plan_id: str
    shard_id: str
    run_id: str
    shard_index: int
    fingerprint: str
    files: tuple[PartFile, ...]
    requests: int
    rows: int
    errors: int
    seconds: float
    prompt_tokens: int
    row_prompt_tokens: int
    planned_tokens: int
    computed_prompt_tokens: int
    generated_tokens: int
    row_errors: int | None = None
    from_store: int = 0
    shares: tuple[Share, ...] = ()
    is_checkpoint: bool = False

    @property
    def by_run(self) -> tuple[Share, ...]:
        """What each run did of it."""
        return self.shares or (Share(self.run_id, **{name: getattr(self, name) for name in _SUMMED}),)

    @property
    def name(self) -> str:
        """Its file's. Checkpoints are of a part each, which their names say, so that they are known without reading."""
        if self.is_checkpoint and self.files:
            return f"checkpoint-{self.plan_id}-{Path(self.files[0].name).stem}.json"
        return f"shard-{self.plan_id}-{self.shard_id}.json"


def describe(
    plan_id: str,
    shard: Shard,
    fingerprint: str,
    part: PartFile,
    shares: Sequence[Share],
    *,
    is_checkpoint: bool = False,
) -> ShardManifest:
    """The manifest of a part that runs made together, the last of which commits it."""
    sums = {name: sum(getattr(share, name) or 0 for share in shares) for name in _SUMMED}
    return ShardManifest(
        plan_id=plan_id,
        shard_id=shard.shard_id,
        run_id=shares[-1].run_id,
        shard_index=shard.index,
        fingerprint=fingerprint,
        files=(part,),
        shares=tuple(shares),
        is_checkpoint=is_checkpoint,
        **sums | {"seconds": round(sums["seconds"], 3)},
    )
