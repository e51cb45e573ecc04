"""Pictures as numbers: what an SVG of 1,000 by 1,000 units is drawn from, with ticks in per cent of its sides.

An SVG is stretched to the width that a page has, and its words are the page's own text beside it, so that they have
one size on a wide screen and on a narrow one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engine.figures import figure, short, ticks
from tasks.report.facts import PromptTree
from tasks.storage.step_curve import CurvePoint, StepCurve

SIDE = 1000.0
# What is left above a budget's line, for its words.
HEADROOM = 1.25
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Tick:
    """`at` per cent from the left, or from the bottom."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Area:
    """A filled path; `kind` names its colour, `name` stands in the legend."""

    kind: str
    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Areas over time; the `budget`'s line is `Tick`'s height, None where it is not known."""

    title: str
    unit: str
    areas: tuple[Area, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_unit: str
    budget: Tick | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """A node of the tree: a rectangle in SVG units and what is told of it."""

    x: float
    y: float
    width: float
    height: float
    share: int
    title: str


@dataclass(frozen=True, slots=True)
class Icicle:
    """Requests from left to right as they run, prompt tokens from the top down.

    `lengths` is the outline of all, `shared` that of what they share, on which `boxes` have a title each.
    """

    boxes: tuple[Box, ...]
    lengths: str
    shared: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def charts(curve: StepCurve) -> tuple[Chart, ...]:
    """Nothing where fewer than two points are known."""
    if len(curve.points) < 2:
        return ()
    spans = curve.spans
    return (_speeds(spans), _batches(spans, curve.step_tokens), _memory(spans, curve.kv_budget_bytes))


Spans = Sequence[tuple[CurvePoint, CurvePoint]]


def _speeds(spans: Spans) -> Chart:
    """Tokens a second, by kind, one on the other."""
    kinds = [("decode", "decode"), ("prefill", "prefill"), ("label", "labels")]
    rates = [[(getattr(b, kind) - getattr(a, kind)) / (b.seconds - a.seconds) for a, b in spans] for kind, _ in kinds]
    used = [at for at, values in enumerate(rates) if any(values)]
    tops = [[0.0] * len(spans)]
    for at in used:
        tops.append([low + more for low, more in zip(tops[-1], rates[at], strict=True)])
    highest = max(tops[-1], default=0.0)
    areas = tuple(
        Area(*kinds[at], _steps(spans, tops[place], tops[place + 1], highest)) for place, at in enumerate(used)
    )
    return _chart("Tokens computed", "tokens/s", spans, areas, highest, short)


def _batches(spans: Spans, budget: int) -> Chart:
    values = [(b.tokens - a.tokens) / (b.steps - a.steps) if b.steps > a.steps else 0.0 for a, b in spans]
    highest = max(*values, budget * HEADROOM, 1.0) if values else 1.0
    area = Area("batch", "tokens a step, in the mean", _steps(spans, [0.0] * len(spans), values, highest))
    limit = Tick(100 * budget / highest, f"budget {budget:,}") if budget else None
    return _chart("Batch", "tokens/step", spans, (area,), highest, short, limit)


def _memory(spans: Spans, budget: int) -> Chart:
    values = [b.kv_bytes / MIB for _, b in spans]
    used = max(values, default=0.0)
    # A budget that a run does not need would make a line of what it uses: its line stands above that, and says so.
    fits = used * 8 >= budget / MIB
    line = budget / MIB if fits else used * HEADROOM
    highest = max(used, line * HEADROOM)
    area = Area("kv", "KV in use between steps", _steps(spans, [0.0] * len(spans), values, highest))
    words = f"budget {budget / MIB:,.0f} MiB"
    limit = Tick(100 * line / highest, words if fits else f"{words}, far above") if budget and highest else None
    chart = _chart("KV cache", "MiB", spans, (area,), highest, short, limit)
    if fits or limit is None:  # else the scale ends below the line
        return chart
    return replace(chart, y_ticks=tuple(tick for tick in chart.y_ticks if tick.at < limit.at))


def _chart(
    title: str,
    unit: str,
    spans: Spans,
    areas: tuple[Area, ...],
    highest: float,
    words: Callable[[float], str],
    budget: Tick | None = None,
) -> Chart:
    length = spans[-1][1].seconds - spans[0][0].seconds
    scale, x_unit = time_scale(length)
    x_ticks = [Tick(100 * at * scale / length, f"{at:g}") for at in ticks(length / scale, 6)]
    y_ticks = [Tick(100 * at / highest, words(at)) for at in ticks(highest)] if highest else [Tick(0.0, "0")]
    return Chart(title, unit, areas, tuple(x_ticks), tuple(y_ticks), x_unit, budget)


def time_scale(seconds: float) -> tuple[float, str]:
    """The unit that seconds are best told in, by its length."""
    if seconds < 180:
        return 1.0, "s"
    return (60.0, "min") if seconds < 3 * 3600 else (3600.0, "h")


def _steps(spans: Spans, low: Sequence[float], high: Sequence[float], highest: float) -> str:
    """A path around the area between two lines of stairs."""
    first, last = spans[0][0].seconds, spans[-1][1].seconds
    across = SIDE / (last - first)

    def corners(values: Sequence[float]) -> list[str]:
        found = []
        for (a, b), value in zip(spans, values, strict=True):
            y = SIDE - SIDE * value / (highest or 1)
            found += [f"{(a.seconds - first) * across:.1f} {y:.1f}", f"{(b.seconds - first) * across:.1f} {y:.1f}"]
        return found

    return f"M{'L'.join([*corners(high), *reversed(corners(low))])}Z"


def icicle(tree: PromptTree) -> Icicle | None:
    """None where the plan has fewer than two requests."""
    if tree.requests < 2 or not tree.longest:
        return None
    x, y = SIDE / tree.requests, SIDE / tree.longest
    boxes = tuple(
        Box(
            x=round(node.first * x, 2),
            y=round(node.start * y, 2),
            width=round(max(node.num_requests * x, 0.4), 2),
            height=round(max((node.end - node.start) * y, 0.4), 2),
            share=_depth(node.num_requests),
            title=f"{node.num_requests:,} requests share tokens {node.start:,} to {node.end:,}: "
            f"{node.end - node.start:,} computed for {node.num_requests * (node.end - node.start):,} as written",
        )
        for node in sorted(tree.nodes, key=lambda node: (node.start, node.first))
    )
    return Icicle(
        boxes=boxes,
        lengths=_outline(tree.lengths, y),
        shared=_outline(tree.shared, y),
        x_ticks=tuple(Tick(100 * at / tree.requests, short(at)) for at in ticks(tree.requests, 5) if at == int(at)),
        y_ticks=tuple(Tick(100 * at / tree.longest, short(at)) for at in ticks(tree.longest, 5)),
    )


def _outline(lengths: Sequence[float], scale: float) -> str:
    """From the top down to each column's length."""
    column = SIDE / len(lengths)
    corners = [
        f"{at * column:.1f} {length * scale:.1f}L{(at + 1) * column:.1f} {length * scale:.1f}"
        for at, length in enumerate(lengths)
    ]
    return f"M0 0L{'L'.join(corners)}L{SIDE:g} 0Z"


def _depth(num_requests: int) -> int:
    """Which of four tones: the more requests, the stronger."""
    return min(4, max(1, round(math.log2(num_requests))))


def seconds_words(seconds: float) -> str:
    scale, unit = time_scale(seconds)
    return f"{figure(seconds / scale)} {unit}"
