"""What was measured, as Markdown: ratios with medians and spread, what the peers tried, what else our runs said."""

import statistics
from collections.abc import Iterable, Sequence

from examples.peers.journal import OURS, Journal, Measurement
from examples.peers.shapes import Shape


def markdown(journal: Journal, shapes: Sequence[Shape], precisions: Sequence[str]) -> str:
    parts = [_ratios(journal, shapes, precisions), _tried(journal, shapes), _ours(journal, shapes, precisions)]
    return "\n\n".join([*parts, _circumstances(journal)])


def _ratios(journal: Journal, shapes: Sequence[Shape], precisions: Sequence[str]) -> str:
    """The peer's median over ours: above 1 Trunkline is faster, below 1 it lost."""
    rows = []
    for shape in shapes:
        for peer in shape.peers:
            best = journal.best_variant(shape, peer)
            theirs = journal.of(shape, peer, best) if best is not None else []
            cells = [shape.label, peer, f"{_spread(theirs)}{f', {best}' if best else ''}"]
            for precision in precisions:
                ours = journal.of(shape, OURS, precision)
                ratio = f"**{_median(theirs) / _median(ours):.2f}x**, " if ours and theirs else ""
                cells.append(ratio + _spread(ours))
            rows.append(cells)
    return _table(["workload", "peer", "its seconds, at its best", *precisions], rows)


def _tried(journal: Journal, shapes: Sequence[Shape]) -> str:
    rows = [
        [shape.name, peer, variant, _spread(journal.of(shape, peer, variant))]
        for shape in shapes
        for peer in shape.peers
        for variant in sorted({one.variant for one in journal.of(shape, peer)})
    ]
    return _table(["workload", "peer", "variant", "seconds"], rows)


def _ours(journal: Journal, shapes: Sequence[Shape], precisions: Sequence[str]) -> str:
    rows = []
    for shape in shapes:
        for precision in precisions:
            ours = journal.of(shape, OURS, precision)
            if not ours:
                continue
            ceiling = [one.report["ceiling_fraction"] for one in ours if one.report["ceiling_fraction"] is not None]
            rows.append(
                [
                    shape.name,
                    precision,
                    f"{statistics.median(ceiling):.2f}" if ceiling else "",
                    f"{ours[0].report['saved_fraction']:.1%}",
                    f"{max(one.report['peak_kv_bytes'] for one in ours) / 2**30:.2f}",
                    f"{max(one.report['other_rss_bytes'] for one in ours) / 2**30:.2f}",
                    f"{statistics.median(one.report['load_seconds'] for one in ours):.1f}",
                ]
            )
    heads = ["workload", "precision", "ceiling fraction", "tokens saved", "KV, GiB", "other memory, GiB", "load, s"]
    return _table(heads, rows)


def _circumstances(journal: Journal) -> str:
    every = list(journal)
    versions = sorted({one.report["version"] for one in every if one.side != OURS})
    ours = [one for one in every if one.side == OURS]
    versions += sorted({f"trunkline {one.report['version']} ({one.revision})" for one in ours})
    versions += sorted({f"torch {one.report['torch']}" for one in ours})
    loads = [one.report["load_seconds"] for one in every if one.side != OURS]
    days = sorted({one.at[:10] for one in every})
    lines = [", ".join(versions), ", ".join(sorted({one.report["device"] for one in ours}))]
    lines.append(" to ".join(dict.fromkeys([*days[:1], *days[-1:]])))
    if loads:
        lines.append(f"loading, not counted: peers {min(loads):.0f}-{max(loads):.0f} s")
    return "; ".join(line for line in lines if line) + "."


def _median(measurements: Iterable[Measurement]) -> float:
    return statistics.median(one.seconds for one in measurements)


def _spread(measurements: Sequence[Measurement]) -> str:
    """The median's seconds, with the fastest and slowest where there are several."""
    if not measurements:
        return "not measured"
    seconds = sorted(one.seconds for one in measurements)
    among = f" ({seconds[0]:.1f}-{seconds[-1]:.1f})" if len(seconds) > 1 else ""
    return f"{statistics.median(seconds):.1f}{among}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
