"""``status``: a run in one line for a status bar, or all live runs as metrics for Prometheus."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.commands.common import EXIT_ERROR, add_json_flag, emit, put, say
from core.commands.parser import ArgumentParser, whole_number

if TYPE_CHECKING:
    from core.hardware.snapshot import Device
    from core.runs.catalog.rows import RunStatus
    from core.runs.record.store import Run

#: Default width of the line, in columns.
DEFAULT_WIDTH = 80
#: Prefix of the names of metrics.
PREFIX = "localtune_"
#: Joules of a watt-hour; base units are joules, seconds, bytes, ratios and degrees Celsius by Prometheus' naming rules.
_JOULES = 3600.0
_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _of_step(name: str) -> Callable[[RunStatus], float | None]:
    return lambda status: getattr(status.recent.last_step, name, None)


#: Metrics of a run: name, help and value; counters end in ``_total``.
_METRICS: tuple[tuple[str, str, Callable[[RunStatus], float | None]], ...] = (
    ("run_step", "Optimizer steps done.", lambda status: status.row.step),
    ("run_steps", "Optimizer steps of the whole run.", lambda status: status.state.total_steps or None),
    ("run_epoch", "Epochs done, with fractions.", _of_step("epoch")),
    ("run_loss", "Training loss of the newest step.", lambda status: status.row.loss),
    ("run_eval_loss", "Loss of the last evaluation on held-out rows.", lambda status: status.eval_loss),
    ("run_learning_rate", "Learning rate of the newest step.", _of_step("lr")),
    ("run_gradient_norm", "Norm of the gradient of the newest step, before clipping.", _of_step("grad_norm")),
    ("run_tokens_per_second", "Tokens without padding per second of the newest step.", _of_step("tokens_per_second")),
    (
        "run_remaining_seconds",
        "Estimated time until the run ends by itself.",
        lambda status: status.eta.seconds if status.eta is not None else None,
    ),
    (
        "run_heartbeat_timestamp_seconds",
        "Unix time of the last sign of life of the worker.",
        lambda status: status.state.updated or None,
    ),
    (
        "run_energy_joules_total",
        "Energy of the run's devices since its worker has started.",
        lambda status: None if status.recent.energy_wh is None else status.recent.energy_wh * _JOULES,
    ),
)
#: Metrics of a device of a run.
_DEVICE_METRICS: tuple[tuple[str, str, Callable[[Device], float | None]], ...] = (
    ("device_temperature_celsius", "Temperature.", lambda device: device.temperature_c),
    ("device_temperature_limit_celsius", "Temperature to stay below.", lambda device: device.temperature_limit_c),
    ("device_memory_used_bytes", "Memory in use.", lambda device: device.memory_used),
    ("device_memory_bytes", "Memory of the device.", lambda device: device.memory_total),
    ("device_utilization_ratio", "Utilization, from 0 to 1.", lambda device: _share(device.utilization)),
    ("device_power_watts", "Power draw.", lambda device: device.power_w),
    ("device_power_limit_watts", "Power limit.", lambda device: device.power_limit_w),
    ("device_fan_ratio", "Fan speed, from 0 to 1.", lambda device: _share(device.fan)),
)


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", nargs="?")
    parser.add_argument("--width", type=whole_number, default=DEFAULT_WIDTH, metavar="COLUMNS")
    parser.add_argument("--prometheus", action="store_true")
    add_json_flag(parser)
    parser.add_conflict("--prometheus", "--json", "each is a format of its own.")


def run(args: argparse.Namespace) -> int:
    """Print the line; without any run an empty one, so that a status bar stays empty."""
    from core.runs.catalog.rows import read_status

    if args.prometheus:
        from core.runs.catalog.rows import live_runs

        now = time.time()
        asked = (target for target in live_runs() if args.run is None or _is(target, args.run))
        put(exposition([read_status(target, now) for target in asked]))
        return 0
    target = _find(args.run)
    if target is None:
        if args.json:
            emit(None)
        return EXIT_ERROR if args.json else 0
    status = read_status(target, time.time())
    if args.json:
        emit(describe(status))
    else:
        say(status_line(status, args.width))
    return 0


def _find(name: str | None) -> Run | None:
    """The named run, else the newest live run, else the newest run.

    Raises:
        UserError: If there is no run of that name.
    """
    from core.runs.catalog.rows import newest_live
    from core.runs.record.store import find_run, list_runs

    if name is not None:
        return find_run(name)
    runs = list_runs()
    return newest_live(runs) or next(iter(runs), None)


def _is(target: Run, name: str) -> bool:
    from core.runs.record.store import find_run

    return find_run(name).path.resolve() == target.path.resolve()


def describe(status: RunStatus) -> dict[str, Any]:
    """The status of a run.

    Returns:
        ``run``, ``name``, ``state``, ``reason``, ``step``, ``total_steps``, ``loss``, ``eval_loss``,
        ``tokens_per_second`` (of the newest step), ``remaining_seconds`` (None while it is unknown), ``energy_wh``
        (since its worker has started), ``updated`` (Unix seconds), ``devices`` (as in ``hardware`` events) and
        ``ranks`` (the processes of a run of several, :class:`core.runs.record.state.Rank`).
    """
    last, state = status.recent.last_step, status.state
    return {
        "run": status.run.id,
        "name": status.row.labels.name,
        "state": state.state,
        "reason": state.reason,
        "step": status.row.step,
        "total_steps": state.total_steps,
        "loss": status.row.loss,
        "eval_loss": status.eval_loss,
        "tokens_per_second": last.tokens_per_second if last is not None else None,
        "remaining_seconds": status.eta.seconds if status.eta is not None else None,
        "energy_wh": status.recent.energy_wh,
        "updated": state.updated or None,
        "devices": [device.to_dict() for device in status.recent.devices] if not state.is_over else [],
        "ranks": [rank.to_dict() for rank in status.ranks],
    }


def status_line(status: RunStatus, width: int) -> str:
    """A run in at most ``width`` columns; the least important parts are left out, and none is cut in two."""
    from core.text import one_line

    parts = _parts(status)
    kept: set[int] = set()
    room = width
    # By importance; the first part is always there, cut if it must be.
    for place in sorted(range(len(parts)), key=lambda place: parts[place][0]):
        needed = len(parts[place][1]) + (2 if kept else 0)
        if needed <= room or not kept:
            kept.add(place)
            room -= needed
    return one_line("  ".join(parts[place][1] for place in sorted(kept)), width)


def _parts(status: RunStatus) -> list[tuple[int, str]]:
    """The parts of the line in order, each with its rank; the lowest rank is the most important."""
    from core.runs.outlook.time_left import eta_words
    from core.runs.record.sentences import brief_id, doing
    from core.runs.record.state import silent_words
    from core.text import one_line
    from core.units import format_fixed, format_number, format_rate

    state, last, history = status.state, status.recent.last_step, status.recent
    share = f" {status.row.step / state.total_steps:.0%}" if state.total_steps else ""
    steps = f" {status.row.step}/{state.total_steps}{share}" if state.total_steps else ""
    word = doing(state.pending) if not state.is_over else ""
    parts = [(0, f"{word or state.word}{', refused' if state.refused else ''}{steps}")]
    if state.state == "paused" and (why := state.parked or state.reason):
        parts.append((1, one_line(why, 60)))
    parts.append((6, one_line(status.row.labels.name, 30) or one_line(brief_id(status.run.id), 30)))
    if silent := silent_words(status.ranks, time.time()) if not state.is_over else "":
        parts.append((1, silent))
    if status.row.loss is not None:
        parts.append((2, f"loss {format_number(status.row.loss)}"))
    if status.eval_loss is not None:
        parts.append((4, f"eval {format_number(status.eval_loss)}"))
    if state.is_over:
        return parts
    if last is not None:
        parts.append((5, format_rate(last.tokens_per_second)))
    if left := eta_words(status.eta):
        parts.append((1, f"ETA {left}"))
    for device in history.devices[:2]:
        parts += _device_parts(device)
    if history.energy_wh is not None:
        parts.append((8, f"{format_fixed(history.energy_wh, 1)} Wh"))
    return parts


def _device_parts(device: Device) -> list[tuple[int, str]]:
    from core.units import format_bytes

    parts = []
    if device.temperature_c is not None:
        parts.append((3, f"{device.temperature_c:.0f} °C"))
    if device.memory_used is not None and device.memory_total:
        parts.append((7, f"{format_bytes(device.memory_used)} of {format_bytes(device.memory_total)}"))
    return parts


def exposition(statuses: Sequence[RunStatus]) -> str:
    """Runs in Prometheus' text exposition format (version 0.0.4).

    Metrics without a value in any run are left out; the number of live runs is always there.
    """
    lines = [*_family("live_runs", "Runs that have not ended.", [({}, float(len(statuses)))])]
    info = [({**_identity(status), **_facts(status)}, 1.0) for status in statuses]
    lines += _family("run_info", "The run: its state, base model, method and display name; always 1.", info)
    for name, text, value_of in _METRICS:
        found = [(_identity(status), value) for status in statuses if (value := value_of(status)) is not None]
        lines += _family(name, text, found)
    for name, text, read in _DEVICE_METRICS:
        found = [
            ({**_identity(status), "device": str(device.index), "name": device.name}, value)
            for status in statuses
            for device in status.recent.devices
            if (value := read(device)) is not None
        ]
        lines += _family(name, text, found)
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


def _family(name: str, text: str, samples: Sequence[tuple[Mapping[str, str], float]]) -> Iterator[str]:
    """Lines of a metric; none without samples."""
    if not samples:
        return
    yield f"# HELP {PREFIX}{name} {text}"
    yield f"# TYPE {PREFIX}{name} {'counter' if name.endswith('_total') else 'gauge'}"
    for labels, value in samples:
        shown = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
        yield f"{PREFIX}{name}{{{shown}}} {_number(value)}" if shown else f"{PREFIX}{name} {_number(value)}"


def _label(text: str) -> str:
    """Value of a label; a carriage return or another control character has no escape, and would end the line."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text).translate(
        _ESCAPED
    )


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return f"{value:.17g}" if float(f"{value:.12g}") != value else f"{value:.12g}"
