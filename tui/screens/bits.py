"""Screen of the 4-bit measurement: an introduction, its progress, and the verdict with the cost of each layer."""

from __future__ import annotations

from collections.abc import Callable

from textual.content import Content

from core.config.schema import Config
from core.jobs.job import JobProgress
from core.quantization.job import measure
from core.quantization.result import HEAD, TABLE, QuantizationCost, facts, layer_lines, sentence
from core.text import one_line
from tui.glyphs import GlyphSet
from tui.screens.job import JobState, progress_bar
from tui.widgets.charts.bars import bar

_ABOUT = (
    "Loads the base one layer at a time, in 16 bit and in 4 bits, and compares what both say of a few of your rows: "
    "held-out ones, where there are any. It takes less memory than the run, about a minute on a card (estimated) and "
    "longer on a processor, and says which layers are worth 16 bit. Nothing of the configuration is changed."
)
#: Most cells of the longest bar.
_BAR = 30


class BitsPage:
    """Page of the 4-bit measurement; its answer is the patterns of the layers to keep in 16 bit.

    Args:
        config: The configuration, paths absolute.
    """

    title = "What 4 bits cost"
    width = 96
    takes = "keep them in 16 bit"

    def __init__(self, config: Config) -> None:
        self._config = config

    def run(self, tell: Callable[[JobProgress], None]) -> QuantizationCost:
        """Measure."""
        return measure(self._config, lambda name, done, total: tell(JobProgress(name, done, total)))

    def close(self) -> None:
        """Do nothing: the measurement ends at its next progress report, a fraction of a second later."""

    def answer(self, result: QuantizationCost) -> tuple[str, ...] | None:
        """The layers worth 16 bit, with the ones the configuration already keeps."""
        return None if result.kept is None else (*result.keep_16bit, *result.kept.patterns)

    def text(self, state: JobState[JobProgress, QuantizationCost], room: int, glyphs: GlyphSet) -> Content:
        """The introduction, the progress, or the result."""
        if state.stage == "asked":
            return Content(_ABOUT)
        if state.stage == "on":
            return _working(state.progress or JobProgress("starting"), glyphs)
        if state.result is None:
            return Content.assemble(("It was not measured. ", "bold"), one_line(str(state.error), 600))
        return _measured(state.result, room, glyphs)


def _working(progress: JobProgress, glyphs: GlyphSet) -> Content:
    if progress.share is None:
        return Content(f"{progress.activity} …")
    text = f"{progress.activity}: {progress.done} of {progress.total}\n"
    return Content(text) + progress_bar(progress.share, glyphs)


def _measured(cost: QuantizationCost, room: int, glyphs: GlyphSet) -> Content:
    """The verdict, the facts, and a line for each layer with a bar of its cost."""
    lines = [Content.styled(sentence(cost), "bold"), Content("")]
    lines += [Content(line) for line in facts(cost)]
    lines += [Content(""), Content.styled(TABLE, "$muted"), Content.styled(HEAD, "$muted")]
    cells = max(min(room - len(HEAD) - 2, _BAR), 0)
    for layer in layer_lines(cost):
        full, _ = bar(layer.share, cells, glyphs)
        style = "bold" if layer.is_kept else ""
        lines.append(Content.assemble((layer.text, style), (f"  {full}", "$primary")))
    return Content("\n").join(lines)
