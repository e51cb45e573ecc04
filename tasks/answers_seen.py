"""How long a run's answers became, as they end; and those of earlier runs of the same job."""

import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.request import RequestOutput
from engine.scheduling.answer_lengths import AnswerLengths
from tasks.storage.manifests import read_manifests
from tasks.storage.output_folder import OutputFolder
from tasks.storage.run import Run

# Of earlier answers: as many that ended in this run outweigh them, for its rows may be others.
MOST_EARLIER = 64


class AnswersSeen:
    """Any shard's thread tells of an output, any thread asks. `earlier` answers have a length and a finish reason."""

    def __init__(self, earlier: Sequence[tuple[int, str]] = ()) -> None:
        self._lock = threading.Lock()
        self._ended: Counter[int] = Counter()
        self._cut: Counter[int] = Counter()
        self.count = 0
        for tokens, reason in earlier:
            self._add(tokens, reason)

    def take(self, output: RequestOutput) -> None:
        """One that scored labels, or is an error, tells nothing."""
        if output.finish_reason in ("stop", "length"):
            with self._lock:
                self._add(len(output.token_ids), output.finish_reason)
                self.count += 1

    def lengths(self, going: Sequence[int]) -> AnswerLengths:
        """Where the answers that go on have so many tokens."""
        with self._lock:
            return AnswerLengths.of_counts(self._ended, self._cut + Counter(going))

    def _add(self, tokens: int, reason: str) -> None:
        (self._ended if reason == "stop" else self._cut)[tokens] += 1


def earlier_answers(run: Run, folder: OutputFolder) -> list[tuple[int, str]]:
    """Lengths and finish reasons of some answers that the run's job has in an output folder: the newest shard's.

    Of rows that have several answers only their sum is known, which tells nothing.
    """
    ours = [one for one in read_manifests(folder) if one.fingerprint == run.fingerprint and one.generated_tokens]
    if not ours or run.job.sampling.n > 1:
        return []
    newest = max(ours, key=lambda one: (folder.manifests / one.name).stat().st_mtime_ns)
    try:
        part = pq.read_table(folder.parts / newest.files[0].name, columns=["completion_tokens", "finish_reason"])
    except (OSError, pa.ArrowException):  # a plan reads what no run has checked yet: damage tells nothing
        return []
    rows = np.unique(np.linspace(0, part.num_rows - 1, MOST_EARLIER).astype(np.int64))
    columns = part.take(rows).to_pydict()
    pairs = zip(columns["completion_tokens"], columns["finish_reason"], strict=True)
    return [(tokens, reason) for tokens, reason in pairs if reason in ("stop", "length")]
