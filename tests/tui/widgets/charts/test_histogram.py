"""The histogram of row lengths."""

from __future__ import annotations

import itertools
import re

from core.analysis.lengths import Bucket
from tui.widgets.charts.bars import draw_histogram


def test_labels_are_evenly_spaced() -> None:
    buckets = [Bucket(low, low + 80, 57 if not low else 0) for low in range(0, 1280, 80)]
    axis = draw_histogram(buckets, 76, 5)[-1]
    places = [match.start() for match in re.finditer(r"[\d,]+", axis)]
    assert len(places) > 4
    assert len({after - before for before, after in itertools.pairwise(places)}) == 1
    assert "1,120 tokens" in axis
