"""Chart of a run: a curve, an optional second curve, and the events at its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.runs.record.series import CURVES, Metric
from tui.state import RunView
from tui.widgets.charts.chart_data import ChartData, ChartMark, Measured

if TYPE_CHECKING:
    from core.runs.record.history import RunHistory

_LOSS = CURVES["loss"]


class RunChart:
    """The choice of curves, kept from run to run."""

    def __init__(self) -> None:
        self._main, self._second = _LOSS.name, ""
        self._logarithmic: set[str] = set()

    def main(self, history: RunHistory) -> Metric:
        """The curve of the left axis: the chosen curve, or the loss if the run does not have it."""
        return CURVES[self._main] if self._main in curves_of(history) else _LOSS

    def second(self, history: RunHistory) -> Metric | None:
        """The curve of the right axis, if any."""
        is_there = self._second in curves_of(history) and self._second != self.main(history).name
        return CURVES[self._second] if is_there else None

    def turn(self, history: RunHistory, by: int) -> None:
        """Choose the next or previous curve of the run."""
        self._main = _next(curves_of(history), self.main(history).name, by)

    def turn_second(self, history: RunHistory, by: int) -> None:
        """Choose the next or previous second curve; no curve comes between the last and the first."""
        main, second = self.main(history).name, self.second(history)
        others = ["", *(name for name in curves_of(history) if name != main)]
        self._second = _next(others, second.name if second is not None else "", by)

    def is_logarithmic(self, metric: Metric) -> bool:
        """True if the curve's axis is logarithmic."""
        return metric.name in self._logarithmic

    def toggle_log(self, history: RunHistory) -> None:
        """Toggle the left axis between linear and logarithmic; each curve keeps its setting."""
        metric = self.main(history)
        if metric.has_log_axis:
            self._logarithmic ^= {metric.name}

    def data(self, view: RunView) -> ChartData:
        """Chart data of a run."""
        history = view.history
        marks = chart_marks(history)
        if not view.is_live and view.state.state != "finished":
            marks.append(ChartMark(view.step, view.state.state))
        main, second = self.main(history), self.second(history)
        return ChartData(
            history.loss,
            history.eval_loss,
            marks,
            view.state.total_steps,
            is_over=not view.is_live,
            probe=history.probe_loss,
            measured=self._measured(history, main) if main is not _LOSS else None,
            second=self._measured(history, second) if second is not None else None,
            times=history.times,
        )

    def _measured(self, history: RunHistory, metric: Metric) -> Measured:
        log = self.is_logarithmic(metric)
        return Measured(metric.read(history), name_of(metric, history), metric.unit, metric.is_noisy, log)


def curves_of(history: RunHistory) -> list[str]:
    """Names of the curves of a run."""
    return [name for name, metric in CURVES.items() if metric.read(history).bounds() is not None]


def name_of(metric: Metric, history: RunHistory) -> str:
    """The name of a curve in the chart: the losses share a name and differ by their marks; a CPU has RAM."""
    if metric is _LOSS:
        return "loss"
    is_cpu = bool(history.devices) and history.devices[0].kind == "cpu"
    return "RAM" if metric.name == "memory" and is_cpu else metric.label


def chart_marks(history: RunHistory) -> list[ChartMark]:
    """Events at the steps of a run, including checkpoints."""
    marks = [ChartMark(mark.step, mark.text, mark.kind) for mark in history.marks]
    return marks + [ChartMark(each.step, f"checkpoint step-{each.step}", "checkpoint") for each in history.checkpoints]


def _next(names: Sequence[str], present: str, by: int) -> str:
    if not names:
        return present
    return names[(names.index(present) + by) % len(names)] if present in names else names[0]
