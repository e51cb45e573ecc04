"""Draws a trace as SVG: tokens a step, KV in use and milliseconds a step, over the run's time, with what they may be.

python -m engine.bench.plot_trace trace.jsonl trace.svg
"""

import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated
from xml.sax.saxutils import escape

import typer

from engine.errors import UserError
from engine.figures import short, ticks
from engine.loop.trace import StepTrace, read_trace

WIDTH, PANEL, LEFT, GAP = 1000, 150, 70, 40
COLOURS = {"prefill": "#3b6ea5", "decode": "#d98032", "label": "#6a9a3f"}
STYLE = "font: 12px sans-serif; fill: #333"
BUDGET = "#b3261e"
MIB = 2**20
# A budget so many times what is used would press it flat: it is told in words alone.
FAR_ABOVE = 8


def draw(steps: Sequence[StepTrace]) -> str:
    """Three panels over one axis of seconds; a `g` of class `step` for each step, with its figures as its title."""
    starts = [0.0, *accumulate(step.milliseconds for step in steps)]
    per_ms = (WIDTH - LEFT - 10) / max(starts[-1], 1e-9)
    tokens = _scale(max(map(_tokens, steps), default=0), max((step.step_tokens for step in steps), default=0))
    kv = _scale(max((step.kv_bytes for step in steps), default=0), max((s.kv_budget_bytes for s in steps), default=0))
    slowest = max((step.milliseconds for step in steps), default=0.0)
    bars, line = [], []
    for step, start in zip(steps, starts, strict=False):
        left, width = LEFT + start * per_ms, max(step.milliseconds * per_ms, 0.2)
        high = step.milliseconds / (slowest or 1) * PANEL
        marks = [*_stack(step, left, width, tokens), _rect(left, _bottom(2) - high, width, high, "#777")]
        bars.append(f'<g class="step"><title>{escape(_words(step))}</title>{"".join(marks)}</g>')
        level = _bottom(1) - step.kv_bytes / (kv or 1) * PANEL
        line += [f"{left:.2f},{level:.2f}", f"{left + width:.2f},{level:.2f}"]
    height = _bottom(2) + GAP
    titles = (
        (0, f"tokens a step{_allowed(steps, 'step_tokens', 1, '')}"),
        (1, f"KV in use, MiB{_allowed(steps, 'kv_budget_bytes', MIB, ' MiB')}"),
        (2, f"milliseconds a step; {starts[-1] / 1000:,.1f} s in {len(steps):,} steps"),
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            *(_title(panel, text) for panel, text in titles),
            *_legend(),
            *bars,
            f'<polyline fill="none" stroke="#8a3ba5" stroke-width="1.5" points="{" ".join(line)}"/>',
            *_levels(0, tokens, 1),
            *_levels(1, kv, MIB),
            *_levels(2, slowest, 1),
            *_times(starts[-1]),
            *_budget(0, tokens, [step.step_tokens for step in steps]),
            *_budget(1, kv, [step.kv_budget_bytes for step in steps]),
            "</svg>\n",
        ]
    )


def _scale(most: float, budget: float) -> float:
    """What a panel's height stands for: the budget, unless that is far above all that is used."""
    return max(most, budget) if budget <= FAR_ABOVE * most else most


def _allowed(steps: Sequence[StepTrace], field: str, unit: float, name: str) -> str:
    most = max((getattr(step, field) for step in steps), default=0)
    return f"; budget {most / unit:,.0f}{name}" if most else ""


def _levels(panel: int, highest: float, unit: float) -> list[str]:
    """The axis on the left: a tick and its number at each round value."""
    marks = []
    for value in ticks(highest / unit):
        level = _bottom(panel) - (value * unit / highest * PANEL if highest else 0)
        marks += [_line(LEFT - 5, LEFT, level, level), _tick(LEFT - 9, level + 4, "end", short(value))]
    return [_line(LEFT, LEFT, _bottom(panel) - PANEL, _bottom(panel)), *marks]


def _times(milliseconds: float) -> list[str]:
    """The seconds below the last panel."""
    bottom, marks = _bottom(2), []
    for value in ticks(milliseconds / 1000, 10) if milliseconds else []:
        at = LEFT + 1000 * value / milliseconds * (WIDTH - LEFT - 10)
        marks += [_line(at, at, bottom, bottom + 5), _tick(at, bottom + 18, "middle", f"{short(value)} s")]
    return marks


def _line(x1: float, x2: float, y1: float, y2: float, more: str = 'stroke="#999"') -> str:
    return f'<line x1="{x1:.2f}" x2="{x2:.2f}" y1="{y1:.2f}" y2="{y2:.2f}" {more}/>'


def _tick(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="tick" x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" style="{STYLE}">{text}</text>'


def _budget(panel: int, highest: float, budgets: Sequence[int]) -> list[str]:
    """A dashed line where the budget is, if the panel reaches so far."""
    budget = max(budgets, default=0)
    if not budget or budget > highest:
        return []
    level = _bottom(panel) - budget / highest * PANEL
    dashes = f'class="budget" stroke="{BUDGET}" stroke-dasharray="5 4"'
    return [_line(LEFT, WIDTH - 10, level, level, dashes)]


def _tokens(step: StepTrace) -> int:
    return step.prefill_tokens + step.decode_tokens + step.label_tokens


def _bottom(panel: int) -> int:
    return (panel + 1) * (PANEL + GAP)


def _stack(step: StepTrace, left: float, width: float, most: float) -> list[str]:
    """Decode at the bottom, prefill on it, labels on top."""
    marks, bottom = [], float(_bottom(0))
    parts = (("decode", step.decode_tokens), ("prefill", step.prefill_tokens), ("label", step.label_tokens))
    for name, tokens in parts:
        high = tokens / (most or 1) * PANEL
        bottom -= high
        if tokens:
            marks.append(_rect(left, bottom, width, high, COLOURS[name]))
    return marks


def _rect(left: float, top: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{colour}"/>'


def _title(panel: int, text: str) -> str:
    bottom = _bottom(panel)
    axis = _line(LEFT, WIDTH - 10, bottom, bottom)
    return f'{axis}<text x="{LEFT}" y="{bottom - PANEL - 8}" style="{STYLE}">{escape(text)}</text>'


def _legend() -> list[str]:
    return [
        f'<text x="{WIDTH - 70 * (at + 1)}" y="{GAP - 8}" style="{STYLE}; fill: {colour}">{name}</text>'
        for at, (name, colour) in enumerate(COLOURS.items())
    ]


def _words(step: StepTrace) -> str:
    return (
        f"step {step.step}: {step.prefill_tokens} prefill, {step.decode_tokens} decode, {step.label_tokens} label "
        f"tokens; {step.running} running, {step.waiting} waiting; {step.kv_bytes / 2**20:.1f} MiB; "
        f"{step.schedule_ms:.1f} + {step.model_ms:.1f} + {step.sample_ms:.1f} ms"
    )


def plot(
    trace: Annotated[Path, typer.Argument(help="What --trace wrote.")],
    out: Annotated[Path | None, typer.Argument(help="The SVG file; else beside the trace.")] = None,
) -> None:
    """Draw TRACE as an SVG file."""
    target = out or trace.with_suffix(".svg")
    if target.suffix.lower() != ".svg":
        raise UserError(f"{target}: the drawing is SVG; end its name in .svg")
    picture = draw(read_trace(trace))
    try:
        target.write_text(picture, encoding="utf-8")
    except OSError as problem:
        raise UserError(f"{target}: {problem.strerror}") from None
    typer.echo(str(target))


def main() -> None:
    try:
        typer.run(plot)
    except UserError as problem:
        typer.echo(f"error: {problem}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
