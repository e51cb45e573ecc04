"""`report.html`: one page about an output folder that needs nothing but itself: no script, no font, no request."""

import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import duckdb
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from engine.figures import figure, percent
from tasks.report.charts import Chart, Icicle, charts, icicle, seconds_words
from tasks.report.facts import Facts, read_facts
from tasks.report.published import open_published
from tasks.report.totals import Totals, read_totals
from tasks.report.views import open_views
from tasks.storage.commit import open_private
from tasks.storage.output_folder import OutputFolder

log = logging.getLogger(__name__)

_TEMPLATE = "report.html.jinja"


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline: a number, what it counts, and a word more."""

    name: str
    value: str
    more: str
    is_bad: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A line of a bar chart; `length` is per cent of the longest."""

    name: str
    value: str
    length: float
    more: str
    kind: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the plan foretold beside what came, and the one by the other."""

    name: str
    planned: str
    came: str
    ratio: str


@dataclass(frozen=True, slots=True)
class Page:
    """All that the template shows, in words and per cent."""

    facts: Facts
    tiles: tuple[Tile, ...]
    asked: tuple[tuple[str, str], ...]
    tokens: tuple[Bar, ...]
    tree: Icicle | None
    charts: tuple[Chart, ...]
    predictions: tuple[Prediction, ...]
    answers: tuple[Bar, ...]
    margins: tuple[Bar, ...]
    commands: tuple[tuple[str, str], ...]


def publish_report(
    folder: OutputFolder, plan_id: str, connection: duckdb.DuckDBPyConnection, totals: Totals
) -> Path | None:
    """The report of what is committed, written; None where it could not be, of which the log says the kind alone.

    It decides nothing: whatever goes wrong with it costs the page, never the run.
    """
    try:
        return _write(folder, read_facts(folder, plan_id, connection, totals))
    except Exception as problem:
        log.warning("%s: the report is not written (%s)", folder, type(problem).__name__)
        return None


def write_report(folder: OutputFolder) -> Path:
    """The report of an output folder, written anew.

    Raises UserError where it has no results, DamagedError and ValueError like `read_facts`.
    """
    published = open_published(folder)
    with open_views(folder, published.plan_id, published.manifests) as connection:
        return _write(folder, read_facts(folder, published.plan_id, connection, read_totals(connection)))


def _write(folder: OutputFolder, facts: Facts) -> Path:
    """Replaced as a whole, with the mode of all files of a run; not synced, for it can be made again."""
    text = render(page_of(facts))
    staged = folder.staged("report.html")
    with open_private(staged) as file:
        file.write(text.encode("utf-8", "replace"))
    os.replace(staged, folder.report)
    folder.tell(folder.report)
    return folder.report


@cache
def report_template() -> Template:
    """Compiled once a process, in a fifth of a second."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": lambda number: f"{number:,}", "seconds": seconds_words, "percent": percent}
    return environment.get_template(_TEMPLATE)


def render(page: Page) -> str:
    """HTML, in which every text of a folder is escaped."""
    return report_template().render(page=page, facts=page.facts)


def page_of(facts: Facts) -> Page:
    return Page(
        facts=facts,
        tiles=tuple(_tiles(facts)),
        asked=tuple(_asked(facts)),
        tokens=tuple(_token_bars(facts)),
        tree=icicle(facts.tree),
        charts=charts(facts.curve),
        predictions=tuple(_predictions(facts)),
        answers=tuple(_answer_bars(facts)),
        margins=tuple(_margin_bars(facts)),
        commands=tuple(_commands(facts)),
    )


def _tiles(facts: Facts) -> list[Tile]:
    ended = f"{facts.missing:,} without an end" if facts.missing else "every row has an end"
    share = percent(facts.errors / facts.rows) if facts.rows else "none"
    tiles = [
        Tile("rows", f"{facts.rows:,}", ended, is_bad=facts.missing > 0),
        Tile("errors", f"{facts.errors:,}", f"{share} of the rows", is_bad=facts.errors > 0),
    ]
    tokens, seconds = facts.tokens, facts.seconds
    if tokens.unique:
        tiles.append(
            Tile("saved by sharing", percent(tokens.saved_fraction), f"ideal {percent(tokens.ideal_saved_fraction)}")
        )
    if seconds is not None:
        tiles.append(Tile("time", seconds_words(seconds), _speed(facts)))
    if facts.scoring.limit_share is not None:
        tiles.append(Tile("share of the limit", percent(facts.scoring.limit_share), f"of {facts.scoring.device}"))
    if facts.cost is not None and facts.scoring.price_per_hour is not None:
        each = f"{1e6 * facts.cost / tokens.requests:,.2f} a million requests" if tokens.requests else "no request"
        tiles.append(Tile("cost", f"{facts.cost:,.2f}", f"at {facts.scoring.price_per_hour:,.2f} an hour; {each}"))
    return tiles


def _speed(facts: Facts) -> str:
    """Of the seconds in which something was computed, where they are known: loading a model is no part of it."""
    computed = facts.tokens.computed + facts.tokens.generated
    if not computed:
        return "nothing was computed"
    if seconds := facts.curve.computing_seconds:
        said = "while it computed" if facts.curve.engines == 1 else f"while {facts.curve.engines} engines computed"
        return f"{figure(computed / seconds, 0)} tokens/s {said}"
    return f"{figure(computed / facts.seconds, 0)} tokens/s" if facts.seconds else f"{computed:,} tokens"


def _asked(facts: Facts) -> list[tuple[str, str]]:
    run, job = facts.scoring, facts.job
    task, source = job.get("task") or {}, job.get("source") or {}
    kind = next((name for name in ("parquet", "csv", "jsonl", "duckdb") if source.get(name)), None)
    place = source.get(kind) if kind is not None else None
    place = place.get("database") if isinstance(place, dict) else place
    precision = [run.dtype, *(word for word in (run.quantization, run.kv_cache_dtype) if word not in ("none", "auto"))]
    asked = [("job", run.name), ("task", str(task.get("type") or "unknown"))]
    if isinstance(labels := task.get("labels"), list):
        asked.append(("labels", f"{len(labels):,}"))
    asked += [("source", f"{kind}: {place}")] if kind is not None else []
    asked += [
        ("model", run.model),
        ("precision", ", ".join(precision)),
        ("determinism", run.determinism),
        ("device", run.device),
        ("run", run.run_id),
        ("started", run.started_at.replace("T", " ").removesuffix("+00:00") + " UTC"),
        ("version", run.version),
        ("folder", str(facts.folder)),
    ]
    return asked


def _token_bars(facts: Facts) -> list[Bar]:
    """What the rows have, what is left without equal rows, what was computed, and the least that anybody could."""
    tokens = facts.tokens
    if not tokens.prompt:
        return []
    ideal = round(tokens.unique * (1 - tokens.ideal_saved_fraction))
    lines = [
        ("as written", tokens.prompt, "all rows' prompts", "plain"),
        ("of different prompts", tokens.unique, "equal rows once", "plain"),
        ("computed", tokens.computed, f"{percent(tokens.saved_fraction)} saved by sharing", "prefill"),
        ("ideal", ideal, f"{percent(tokens.ideal_saved_fraction)}: each shared token once", "label"),
    ]
    return [Bar(name, f"{value:,}", 100 * value / tokens.prompt, more, kind) for name, value, more, kind in lines]


def _predictions(facts: Facts) -> list[Prediction]:
    tokens, planned = facts.tokens, facts.planned
    found = []
    if tokens.planned:
        found.append(_prediction("prompt tokens computed", tokens.planned, tokens.computed))
    if planned is not None and planned.max_decode_tokens:
        found.append(_prediction("tokens generated, at most", planned.max_decode_tokens, tokens.generated))
    busy = facts.curve.points[-1].busy_seconds if facts.curve.points else 0.0
    if planned is not None and planned.expected_seconds and busy and not facts.missing:
        name = "seconds computing" if facts.curve.engines == 1 else "seconds computing, all engines' together"
        if planned.decode_seconds:
            name += ", with the longest answers"
        found.append(_prediction(name, planned.expected_seconds, busy, digits=1))
    return found


def _prediction(name: str, planned: float, came: float, *, digits: int = 0) -> Prediction:
    return Prediction(name, figure(planned, digits), figure(came, digits), f"{figure(came / planned, 2)} ×")  # noqa: RUF001


def _answer_bars(facts: Facts) -> list[Bar]:
    several = len({one.task for one in facts.answers}) > 1
    most = max((one.rows for one in facts.answers), default=1)
    bars = []
    for one in facts.answers:
        sure = [] if one.mean_probability is None else [f"probability {one.mean_probability:.3f}"]
        sure += [] if one.median_margin is None else [f"margin {one.median_margin:.2f}"]
        name = f"{one.task}: {one.answer}" if several else one.answer
        share = percent(one.rows / facts.results)
        bars.append(Bar(name, f"{one.rows:,}", 100 * one.rows / most, " · ".join([share, *sure]), "prefill"))
    return bars


def _margin_bars(facts: Facts) -> list[Bar]:
    """Rows by how near they were to another answer."""
    most = max((rows for _, rows in facts.margins), default=1)
    total = sum(rows for _, rows in facts.margins)
    bars, below = [], 0.0
    for bound, rows in facts.margins:
        name = f"{below:g} or more" if bound is None else f"{below:g} to {bound:g}" if below else f"under {bound:g}"
        bars.append(Bar(name, f"{rows:,}", 100 * rows / most, percent(rows / total), "kv"))
        below = bound if bound is not None else below
    return bars


def _commands(facts: Facts) -> list[tuple[str, str]]:
    """What a person types next, and why."""
    root = facts.folder
    commands = []
    if facts.missing:
        commands.append(("continue", f"trunkline score JOB --output {root}"))
    elif facts.errors:
        commands.append(("score the error rows again", f"trunkline score JOB --output {root} --retry-failed"))
    else:
        commands.append(("score rows that are new", f"trunkline score JOB --output {root}"))
    commands.append(("look at the results", f'trunkline sql "from results limit 5" --output {root}'))
    if facts.errors:
        commands.append(("look at the errors", f'trunkline sql "from errors limit 5" --output {root}'))
    commands.append(("write this page anew", f"trunkline report {root}"))
    return commands
