"""Live runs as gauges in Prometheus' text exposition format (version 0.0.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from core.hardware.snapshot import Device
from core.runs.status import RunStatus

#: Joules of a watt-hour; base units are joules, seconds, bytes, ratios and degrees Celsius by Prometheus' naming rules.
_JOULES = 3600.0
_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


@dataclass(frozen=True)
class _Metric:
    """A metric of a run."""

    name: str
    help: str
    value: Callable[[RunStatus], float | None]
    kind: str = "gauge"


@dataclass(frozen=True)
class _DeviceMetric:
    """A metric of a device of a run."""

    name: str
    help: str
    value: Callable[[Device], float | None]


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _of_step(name: str) -> Callable[[RunStatus], float | None]:
    return lambda status: getattr(status.recent.last_step, name, None)


_METRICS = (
    _Metric("run_step", "Optimizer steps done.", lambda status: status.row.step),
    _Metric("run_steps", "Optimizer steps of the whole run.", lambda status: status.state.total_steps or None),
    _Metric("run_epoch", "Epochs done, with fractions.", _of_step("epoch")),
    _Metric("run_loss", "Training loss of the newest step.", lambda status: status.row.loss),
    _Metric("run_eval_loss", "Loss of the last evaluation on held-out rows.", lambda status: status.eval_loss),
    _Metric("run_learning_rate", "Learning rate of the newest step.", _of_step("lr")),
    _Metric("run_gradient_norm", "Norm of the gradient of the newest step, before clipping.", _of_step("grad_norm")),
    _Metric(
        "run_tokens_per_second", "Tokens without padding per second of the newest step.", _of_step("tokens_per_second")
    ),
    _Metric(
        "run_remaining_seconds",
        "Estimated time until the run ends by itself.",
        lambda status: status.eta.seconds if status.eta is not None else None,
    ),
    _Metric(
        "run_heartbeat_timestamp_seconds",
        "Unix time of the last sign of life of the worker.",
        lambda status: status.state.updated or None,
    ),
    _Metric(
        "run_energy_joules_total",
        "Energy of the run's devices since its worker has started.",
        lambda status: None if status.recent.energy_wh is None else status.recent.energy_wh * _JOULES,
        "counter",
    ),
)
_DEVICE_METRICS = (
    _DeviceMetric("device_temperature_celsius", "Temperature.", lambda device: device.temperature_c),
    _DeviceMetric(
        "device_temperature_limit_celsius", "Temperature to stay below.", lambda device: device.temperature_limit_c
    ),
    _DeviceMetric("device_memory_used_bytes", "Memory in use.", lambda device: device.memory_used),
    _DeviceMetric("device_memory_bytes", "Memory of the device.", lambda device: device.memory_total),
    _DeviceMetric("device_utilization_ratio", "Utilization, from 0 to 1.", lambda device: _share(device.utilization)),
    _DeviceMetric("device_power_watts", "Power draw.", lambda device: device.power_w),
    _DeviceMetric("device_power_limit_watts", "Power limit.", lambda device: device.power_limit_w),
    _DeviceMetric("device_fan_ratio", "Fan speed, from 0 to 1.", lambda device: _share(device.fan)),
)
#: Prefix of all names.
PREFIX = "localtune_"


def exposition(statuses: Sequence[RunStatus]) -> str:
    """Metrics of runs; those without a value in any run are left out, and the number of live runs is always there."""
    lines = [*_family("live_runs", "gauge", "Runs that have not ended.", [({}, float(len(statuses)))])]
    info = [({**_identity(status), **_facts(status)}, 1.0) for status in statuses]
    lines += _family("run_info", "gauge", "The run: its state, base model, method and display name; always 1.", info)
    for metric in _METRICS:
        samples = [(_identity(status), value) for status in statuses if (value := metric.value(status)) is not None]
        lines += _family(metric.name, metric.kind, metric.help, samples)
    for measure in _DEVICE_METRICS:
        found = [
            ({**_identity(status), "device": str(device.index), "name": device.name}, value)
            for status in statuses
            for device in status.recent.devices
            if (value := measure.value(device)) is not None
        ]
        lines += _family(measure.name, "gauge", measure.help, found)
    return "".join(f"{line}\n" for line in lines)


def _identity(status: RunStatus) -> dict[str, str]:
    return {"run": status.run.id}


def _facts(status: RunStatus) -> dict[str, str]:
    row = status.row
    return {
        "state": status.state.state,
        "model": row.base_name,
        "method": row.method_words,
        "display_name": row.labels.name,
    }


def _family(name: str, kind: str, text: str, samples: Sequence[tuple[Mapping[str, str], float]]) -> Iterator[str]:
    """The lines of a metric; none without samples."""
    if not samples:
        return
    yield f"# HELP {PREFIX}{name} {text}"
    yield f"# TYPE {PREFIX}{name} {kind}"
    for labels, value in samples:
        told = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
        yield f"{PREFIX}{name}{{{told}}} {_number(value)}" if told else f"{PREFIX}{name} {_number(value)}"


def _label(text: str) -> str:
    """A value of a label; a carriage return or another control character has no escape, and would end the line."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text).translate(
        _ESCAPED
    )


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return f"{value:.17g}" if float(f"{value:.12g}") != value else f"{value:.12g}"
