"""What a finished run says about itself."""

from dataclasses import dataclass
from pathlib import Path

from engine.figures import figure, percent
from tasks.publish import Answers, Published
from tasks.storage.output_folder import OutputFolder


@dataclass(frozen=True, slots=True)
class Outcomes:
    """A table of two columns: what was counted, or shown, under two heads."""

    heads: tuple[str, str]
    rows: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run's end. `scored_rows` and `seconds` are this run's own; `published` counts all rows of the job. Before
    those seconds, or between them, another run had the device for `waited_seconds`.

    `rejected` rows are those of them that no run can score, `equal_rows` those whose request is another row's too; of
    the requests, `done_before` had an answer in the folder when the run began, and `from_store` in the scoring store.
    """

    job: str
    run_id: str
    folder: Path
    published: Published
    shards: int
    scored_rows: int
    rejected: int
    seconds: float
    equal_rows: int = 0
    done_before: int = 0
    from_store: int = 0
    waited_seconds: float = 0.0
    url: str | None = None

    @property
    def place(self) -> str:
        """The output folder's name for people: `folder` is a working copy where it is in a bucket, at `url`."""
        return self.url or str(self.folder)

    @property
    def rows_per_second(self) -> float:
        return self.scored_rows / self.seconds if self.seconds > 0 else 0.0

    @property
    def page(self) -> Path:
        """Where the report for a browser is, if it could be written."""
        return OutputFolder(self.folder).report

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
        if self.waited_seconds >= 1:
            facts.append(("waited", f"{figure(self.waited_seconds)} s while another run had the device"))
        if skipped := self._skipped():
            facts.append(("not scored", skipped))
        if p.prompt_tokens:
            facts.append(("prompt tokens", self._prompt_tokens()))
            facts.append(("saved by sharing", f"{percent(p.saved_fraction)} (ideal {percent(p.ideal_saved_fraction)})"))
        return facts

    def _prompt_tokens(self) -> str:
        """What is saved by sharing is of those of different prompts, which are all where no rows are equal."""
        p = self.published
        said = [f"{p.prompt_tokens:,} as written", f"{p.computed_prompt_tokens:,} computed"]
        if p.unique_prompt_tokens != p.prompt_tokens:
            said.insert(1, f"{p.unique_prompt_tokens:,} of different prompts")
        return ", ".join(said)

    def _skipped(self) -> str:
        """Which rows had no need to be scored, and why."""
        reasons = {
            "equal to another row": self.equal_rows,
            "done before": self.done_before,
            "found in the store": self.from_store,
        }
        return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)

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
        where = " or one in the store" if self.from_store else ""
        return f"every row{others} had a committed result{where}"

    def outcomes(self, *, quotes: bool = True) -> list[Outcomes]:
        """What each task type shows of its answers, where rows have several types with its name; errors by type last.

        Those stand below the answers where there is one type alone. `quotes`: with texts, which may quote a prompt.
        """
        answers = [one for one in self.published.answers if quotes or not one.shown.quote]
        if len(answers) == 1:
            both = [*_shown(answers[0]), *self._errors()]
            return [Outcomes(answers[0].shown.heads, both)] if both else []
        tables = [Outcomes((f"{one.task}: {one.shown.heads[0]}", one.shown.heads[1]), _shown(one)) for one in answers]
        return tables + ([Outcomes(("error", "rows"), self._errors())] if self._errors() else [])

    def _errors(self) -> list[tuple[str, str]]:
        return [(f"error {kind}", f"{rows:,}") for kind, rows in self.published.error_types]

    def markdown(self) -> str:
        """The run's page in Prefect. Generated text stays in the folder: it may quote a prompt."""
        rows, *facts = self.facts()
        tables = [_table(one) for one in (Outcomes(rows, facts), *self.outcomes(quotes=False))]
        return "\n\n".join([f"# {self.job}, {self.run_id}", *tables, f"Results: `{self.place}`"])


def _shown(answers: Answers) -> list[tuple[str, str]]:
    return [(name, f"{value:,}" if isinstance(value, int) else value) for name, value in answers.rows]


def _table(outcomes: Outcomes) -> str:
    head, *rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in (outcomes.heads, *outcomes.rows)]
    return "\n".join([head, "|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
