"""What each of an engine's steps did and what it took, as JSON lines."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType

from engine.errors import UserError


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One step. `running` sequences decode in it, `waiting` are all others submitted and not ended.

    `prefill_tokens` are prompts', those that grammars put into texts, and those of texts that gave way, computed again.

    `kv_bytes` are in use while the model runs. Milliseconds: `schedule_ms` chooses the step and takes in its tokens,
    `model_ms` computes hidden states, `sample_ms` logits, tokens and label scores. They are the host's: on a GPU the
    first launches, and the second launches and waits for what the device has yet to do of the step. `step_tokens` and
    `kv_budget_bytes` are what a step and the KV cache may have; 0 in what earlier versions wrote.
    """

    step: int
    prefill_tokens: int
    decode_tokens: int
    label_tokens: int
    running: int
    waiting: int
    kv_bytes: int
    schedule_ms: float
    model_ms: float
    sample_ms: float
    step_tokens: int = 0
    kv_budget_bytes: int = 0

    @property
    def milliseconds(self) -> float:
        return self.schedule_ms + self.model_ms + self.sample_ms


OnStep = Callable[[StepTrace], None]


class TraceWriter:
    """Writes a JSON line a step; a line is in the file when the call returns. As a context it closes the file."""

    def __init__(self, path: Path, *, keep: bool = False) -> None:
        """Empties the file but where it is to `keep` its lines. Raises UserError where it cannot be written."""
        try:
            self._file = path.open("a" if keep else "w", buffering=1, encoding="utf-8")
        except OSError as problem:
            raise UserError(f"--trace {path}: {problem.strerror}") from None

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def __call__(self, step: StepTrace) -> None:
        row = {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(step).items()}
        self._file.write(json.dumps(row) + "\n")


def read_trace(path: Path) -> list[StepTrace]:
    """Raises UserError for a file that is no trace."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            StepTrace(**{field.name: row[field.name] for field in fields(StepTrace) if field.name in row})
            for row in rows
        ]
    except OSError as problem:
        raise UserError(f"{path}: {problem.strerror}") from None
    except (ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{path}: is not a trace ({problem!r})") from None
