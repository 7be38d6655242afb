"""Screen of the 4-bit measurement: an introduction, its progress, and the verdict with the cost of each layer."""

from __future__ import annotations

from collections.abc import Callable

from textual.content import Content

from core.config.schema import Config
from core.jobs.job import JobProgress
from core.jobs.running import RunningJob
from core.quantization.job import measure
from core.quantization.result import HEAD, TABLE, QuantizationCost, facts, layer_lines, sentence
from tui.glyphs import GlyphSet
from tui.jobs import JobPage
from tui.screens.job import progress_text
from tui.widgets.charts.bars import bar

_ABOUT = (
    "Loads the base one layer at a time, in 16 bit and in 4 bits, and compares what both say of a few of your rows: "
    "held-out ones, where there are any. It takes less memory than the run, about a minute on a card (estimated) and "
    "longer on a processor, and says which layers are worth 16 bit. Nothing of the configuration is changed."
)
#: Most cells of the longest bar.
_BAR = 30


class BitsPage(JobPage[JobProgress, QuantizationCost]):
    """Page of the 4-bit measurement, which ends at its next progress when it is canceled.

    Args:
        config: The configuration, paths absolute.
        take: Takes the patterns of the layers to keep in 16 bit.
        ended: Called at the end.
    """

    takes = "keep them in 16 bit"

    def __init__(self, config: Config, take: Callable[[tuple[str, ...]], object], ended: Callable[[], object]) -> None:
        super().__init__(RunningJob("measurement", "4 bits"), "What 4 bits cost")
        self._config, self._take, self._ended = config, take, ended

    def run(self, tell: Callable[[JobProgress], None]) -> QuantizationCost:
        """Measure."""
        return measure(self._config, lambda name, done, total: tell(JobProgress(name, done, total)))

    def has_ended(self) -> None:
        """Show what is known now."""
        self._ended()

    def can_take(self) -> bool:
        """True if some layers are worth 16 bit."""
        return self.job.result is not None and self.job.result.kept is not None

    def take(self) -> None:
        """Keep the layers worth 16 bit, with the ones the configuration already keeps."""
        if (result := self.job.result) is not None and result.kept is not None:
            self._take((*result.keep_16bit, *result.kept.patterns))

    def outcome(self) -> str:
        """The verdict."""
        return sentence(self.job.result) if self.job.result is not None else ""

    def text(self, room: int, glyphs: GlyphSet) -> Content:
        """The introduction, the progress, or the result."""
        if self.job.stage == "asked":
            return Content(_ABOUT)
        return progress_text(self.job, glyphs) if self.job.result is None else _measured(self.job.result, room, glyphs)


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
