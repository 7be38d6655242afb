"""Metrics: the curves of a run by name, with their units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.runs.history import RunHistory
    from core.runs.series import Series


@dataclass(frozen=True)
class Metric:
    """A curve of a run."""

    name: str
    label: str
    read: Callable[[RunHistory], Series]
    is_sparse: bool = False
    """Whether its few values are measured at evaluations."""
    unit: str = ""
    is_noisy: bool = False
    """Whether each value is that of one step's rows, so that only a smoothed curve tells where it goes."""
    has_log_axis: bool = True
    """Whether a logarithmic axis makes sense: not for temperatures, whose zero is arbitrary."""


def _by_name(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


#: What training reports, by name, in the order in which a key turns through it.
METRICS = _by_name(
    Metric("loss", "training loss", lambda history: history.loss, is_noisy=True),
    Metric("eval_loss", "eval loss", lambda history: history.eval_loss, is_sparse=True),
    Metric("exact_match", "exact match", lambda history: history.exact_match, is_sparse=True),
    Metric("probe_loss", "probe loss", lambda history: history.probe_loss, is_sparse=True),
    Metric("learning_rate", "learning rate", lambda history: history.learning_rate),
    Metric("grad_norm", "gradient norm", lambda history: history.grad_norm, is_noisy=True),
    Metric("tokens_per_second", "tokens/s", lambda history: history.throughput, unit="tok/s", is_noisy=True),
)
#: What its first device reports, likewise.
DEVICE_METRICS = _by_name(
    Metric("temperature", "temperature", lambda history: history.temperature, unit="°C", has_log_axis=False),
    Metric("power", "power", lambda history: history.power, unit="W"),
    Metric("memory", "VRAM", lambda history: history.device_memory, unit="GB"),
)
#: All curves with a value at each step or each measurement, in the order in which a key turns through them.
CURVES: Mapping[str, Metric] = {
    name: metric for name, metric in (METRICS | DEVICE_METRICS).items() if not metric.is_sparse
}
