"""A histogram of row lengths, drawn as columns of eighth blocks."""

from __future__ import annotations

from collections.abc import Sequence

from core.analysis.lengths import Bucket
from core.units import format_count

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def draw_histogram(buckets: Sequence[Bucket], width: int, height: int) -> list[str]:
    """Lines of a histogram, with an axis of the lengths below it.

    Args:
        buckets: The bars.
        width: Cells of a line.
        height: Lines of the bars, without the axis and its numbers.
    """
    if not buckets or height < 1:
        return []
    top = max(bucket.count for bucket in buckets)
    label = format_count(top)
    bar = max(1, min(4, (width - len(label) - 1) // len(buckets)))
    shown = list(buckets)[: max(1, (width - len(label) - 1) // bar)]
    lines = []
    for level in range(height, 0, -1):
        margin = label if level == height else "0" if level == 1 and height > 1 else ""
        cells = []
        for bucket in shown:
            filled = bucket.count * height * 8 / top if top else 0.0
            # A bar of few rows stays visible.
            eighths = max(1 if bucket.count and level == 1 else 0, min(8, round(filled - (level - 1) * 8)))
            cells.append(_EIGHTHS[eighths] * (bar - 1 if bar > 1 else 1) + (" " if bar > 1 else ""))
        lines.append(f"{margin.rjust(len(label))}┤{''.join(cells)}".rstrip())
    pad = " " * len(label)
    lines.append(f"{pad}└{'─' * (bar * len(shown))}")
    lines.append(f"{pad} {_ticks(shown, bar)} tokens")
    return lines


def _ticks(buckets: Sequence[Bucket], bar: int) -> str:
    """Axis labels: the lower end of every so many bars, under the bar."""
    texts = [format_count(bucket.low) for bucket in buckets]
    apart = -(-(max(map(len, texts)) + 2) // bar)
    line = ""
    for place in range(0, len(texts), apart):
        line = line.ljust(place * bar) + texts[place]
    return line
