"""What a finished run says about itself."""

from dataclasses import dataclass
from pathlib import Path

from engine.figures import figure, percent
from tasks.publish import Published


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run's end. `scored_rows` and `seconds` are this run's own; `published` counts all rows of the job.

    `rejected` rows are those of them that no run can score.
    """

    job: str
    run_id: str
    folder: Path
    published: Published
    shards: int
    scored_rows: int
    rejected: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        return self.scored_rows / self.seconds if self.seconds > 0 else 0.0

    @property
    def finished_fraction(self) -> float:
        rows = self.published.rows
        return (self.published.results + self.published.errors) / rows if rows else 1.0

    def facts(self) -> list[tuple[str, str]]:
        """Name and value, in the order in which a person asks."""
        p = self.published
        facts = [("rows", f"{p.rows:,} ({p.results:,} results, {p.errors:,} errors)")]
        if p.missing:
            facts.append(("without an end", f"{p.missing:,} rows: run the same command to continue"))
        if self.scored_rows:
            speed = f"{figure(self.rows_per_second)} rows/s"
            facts.append(("scored now", f"{self.scored_rows:,} rows in {figure(self.seconds)} s: {speed}"))
        else:
            facts.append(("scored now", f"nothing: {self._nothing()}"))
        if p.prompt_tokens:
            facts.append(("prompt tokens", f"{p.prompt_tokens:,} as written, {p.computed_prompt_tokens:,} computed"))
            facts.append(("saved by sharing", f"{percent(p.saved_fraction)} (ideal {percent(p.ideal_saved_fraction)})"))
        return facts

    def _nothing(self) -> str:
        """Why a run scored nothing."""
        p = self.published
        if not p.rows:
            return "the source has no rows"
        if p.missing:
            return "the run failed before"
        if self.rejected == p.rows:
            return "no row can be scored"
        others = " that can be scored" if self.rejected else ""
        return f"every row{others} had a committed result"

    def outcomes(self) -> list[tuple[str, str]]:
        """What the task type shows of the answers; then errors by type."""
        return self._answers() + self._errors()

    def _answers(self) -> list[tuple[str, str]]:
        answers = self.published.answers
        return [(name, f"{value:,}" if isinstance(value, int) else value) for name, value in answers]

    def _errors(self) -> list[tuple[str, str]]:
        return [(f"error {kind}", f"{rows:,}") for kind, rows in self.published.error_types]

    def markdown(self) -> str:
        """The run's page in Prefect. Generated text stays in the folder: it may quote a prompt."""
        counts = self._errors() if self.published.shown.quote else self.outcomes()
        lines = [f"# {self.job}, {self.run_id}", "", "| | |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in [*self.facts(), *counts]]
        return "\n".join([*lines, "", f"Results: `{self.folder}`"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
