"""Draws a trace as SVG: tokens a step, KV in use and milliseconds a step, over the run's time.

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
from engine.loop.trace import StepTrace, read_trace

WIDTH, PANEL, LEFT, GAP = 1000, 150, 70, 40
COLOURS = {"prefill": "#3b6ea5", "decode": "#d98032", "label": "#6a9a3f"}
STYLE = "font: 12px sans-serif; fill: #333"


def draw(steps: Sequence[StepTrace]) -> str:
    """Three panels over one axis of seconds; a `g` of class `step` for each step, with its figures as its title."""
    starts = [0.0, *accumulate(step.milliseconds for step in steps)]
    per_ms = (WIDTH - LEFT - 10) / max(starts[-1], 1e-9)
    most_tokens = max((_tokens(step) for step in steps), default=0)
    most_kv = max((step.kv_bytes for step in steps), default=0)
    slowest = max((step.milliseconds for step in steps), default=0.0)
    bars, kv = [], []
    for step, start in zip(steps, starts, strict=False):
        left, width = LEFT + start * per_ms, max(step.milliseconds * per_ms, 0.2)
        high = step.milliseconds / (slowest or 1) * PANEL
        marks = [*_stack(step, left, width, most_tokens), _rect(left, _bottom(2) - high, width, high, "#777")]
        bars.append(f'<g class="step"><title>{escape(_words(step))}</title>{"".join(marks)}</g>')
        level = _bottom(1) - step.kv_bytes / (most_kv or 1) * PANEL
        kv += [f"{left:.2f},{level:.2f}", f"{left + width:.2f},{level:.2f}"]
    height = _bottom(2) + GAP
    titles = (
        (0, f"tokens a step, at most {most_tokens:,}"),
        (1, f"KV in use, at most {most_kv / 2**20:,.1f} MiB"),
        (2, f"milliseconds a step, at most {slowest:,.1f}; {starts[-1] / 1000:,.1f} s in {len(steps):,} steps"),
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            *(_title(panel, text) for panel, text in titles),
            *_legend(),
            *bars,
            f'<polyline fill="none" stroke="#8a3ba5" stroke-width="1.5" points="{" ".join(kv)}"/>',
            "</svg>\n",
        ]
    )


def _tokens(step: StepTrace) -> int:
    return step.prefill_tokens + step.decode_tokens + step.label_tokens


def _bottom(panel: int) -> int:
    return (panel + 1) * (PANEL + GAP)


def _stack(step: StepTrace, left: float, width: float, most: int) -> list[str]:
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
    axis = f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{bottom}" y2="{bottom}" stroke="#999"/>'
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
