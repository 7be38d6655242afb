"""Panel of device meters: temperature, memory, power, load. A missing value is a dash."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.content import Content

from core.hardware.snapshot import Device, Host
from core.text import one_line
from core.units import format_bytes, format_count
from tui.glyphs import BRAILLE, GlyphSet
from tui.meters import LIMIT, NEAR, OK, WORD_COLORS, memory_word, temperature_limit, temperature_word
from tui.widgets.charts.bars import bar, sparkline, tick_place
from tui.widgets.text_block import TextBlock

if TYPE_CHECKING:
    from core.runs.record.events import MemoryEvent

#: Minimum columns for two lines per device, with wide bars.
WIDE = 96
#: Maximum number of devices shown; further ones are counted.
MOST = 4
#: Maximum number of cores drawn; more are thinned out.
_MOST_CORES = 32
#: Throttling reasons that come from settings and are left out of the narrow line.
_SETTINGS = ("application clocks", "sync boost", "display clock")
#: Throttling reasons caused by heat or by the power supply.
HOT = ("thermal slowdown", "hardware thermal slowdown", "hardware slowdown", "power brake", "memory temperature")
#: Word for such throttling in a narrow pane, and the cells of the narrowest bars.
HELD, NARROWEST = "held back", 5
_SHORT = {OK: "ok", NEAR: "near", LIMIT: "limit", HELD: "held"}
#: Maximum lines of details.
_DETAIL_LINES = 2
#: Columns of a device's name, and indentation of the lines below it.
_NAME_WIDTH = 6


@dataclass(frozen=True)
class PlannedMemory:
    """Planned memory of a device.

    Args:
        bytes: Predicted peak of the run, in bytes.
        used: The same plus the memory of other processes on the device.
    """

    bytes: int
    used: int


def planned_memory(memory: Mapping[str, MemoryEvent], device: Device, pid: int | None) -> PlannedMemory | None:
    """The planned memory of a device; None if unknown.

    Args:
        memory: Newest memory event of each device.
        device: The device's newest sample.
        pid: The process of the run; None if unknown.
    """
    from core.memory.plan import RECLAIMABLE

    event = next((event for event in memory.values() if event.predicted_bytes), None)
    if event is None or not event.predicted_bytes or not device.memory_total:
        return None
    if (event.device == "cpu") != (device.kind == "cpu"):
        return None
    predicted = sum(size for name, size in event.predicted_bytes.items() if name not in RECLAIMABLE)
    if device.kind == "cpu":
        # The limit is free memory plus memory of the run: the rest belongs to other processes.
        others = device.memory_total - event.limit_bytes if event.limit_bytes is not None else 0
    else:
        others = sum(item.memory or 0 for item in device.processes if item.pid != pid)
    return PlannedMemory(predicted, predicted + max(others, 0))


@dataclass(frozen=True)
class Around:
    """Context of the device meters: plan, machine and process.

    Args:
        planned: Returns the planned memory of a device; None for no figure.
        host: The machine; None if unknown.
        pid: The run's own process.
        is_detailed: There is room for all values.
    """

    planned: Callable[[Device], PlannedMemory | None] = lambda _: None
    host: Host | None = None
    pid: int | None = None
    is_detailed: bool = False


class DevicePanel(TextBlock):
    """Panel of devices: a line each, two in a wide pane, and all details if it is tall too.

    Args:
        glyphs: The glyphs of the bars.
    """

    def __init__(self, glyphs: GlyphSet = BRAILLE) -> None:
        super().__init__()
        self._glyphs = glyphs
        self._devices: Sequence[Device] = ()
        self._stale = ""
        self._around = Around()

    def show_devices(self, devices: Sequence[Device], stale: str = "", around: Around | None = None) -> None:
        """Show a sample; ``stale`` is the age of an old sample in words."""
        self._devices, self._stale, self._around = devices, stale, around or Around()
        self._compose_lines()

    def on_resize(self) -> None:
        """Lay out the meters for the new width."""
        self._compose_lines()

    def _compose_lines(self) -> None:
        width = self.size.width or self.container_size.width
        shown = self._devices[:MOST]
        lines: list[Content] = []
        for device in shown:
            found = device_lines(device, width, self._glyphs, several=len(self._devices) > 1, around=self._around)
            age = "" if device.age_s is None else f"{device.age_s:.0f} s old: the driver does not answer"
            lines += _with_age(found, age, width)
        if len(self._devices) > MOST:
            lines.append(Content.styled(f"{len(self._devices) - MOST} more devices", "$muted"))
        if lines and self._around.host is not None and self._around.is_detailed and width >= WIDE:
            has_cpu = any(device.kind == "cpu" for device in self._devices)
            lines.append(host_line(self._around.host, self._glyphs, width, has_cpu=has_cpu))
        self.show(Content("\n").join(_with_age(lines, self._stale, width)))


def _with_age(lines: list[Content], age: str, width: int) -> list[Content]:
    """Dim old lines and append their age, on a new line if there is no room."""
    if not lines or not age:
        return lines
    dim = [line.stylize("$muted") for line in lines]
    fits = dim[-1].cell_length + 3 + len(age) <= width
    dim += [] if fits else [Content("")]
    dim[-1] = Content.assemble(dim[-1], (f"   {age}", "$near"))
    return dim


def device_lines(
    device: Device, width: int, glyphs: GlyphSet, *, several: bool = False, around: Around | None = None
) -> list[Content]:
    """Lines of a device: one if narrow, two if wide, and more for details.

    Args:
        device: The device.
        width: Columns.
        glyphs: The glyphs of the bars.
        several: There are other devices, so show its name.
        around: The context.
    """
    around = around or Around()
    wide = width >= WIDE
    name = _name(device) if wide or several or device.kind == "cpu" else ""
    if device.problem:
        return [_lost(device, name or _name(device), width)]
    planned = around.planned(device)
    if not wide:
        return [_narrow(device, name, width, glyphs, planned)]
    heat = _memory_heat(device)
    room = width - 66 - (12 if planned is not None else 0) - 13 * len(heat)
    bar_width = max(min(room // 2, 24), 8)
    meters = [
        _temperature(device, bar_width, glyphs, wide=True),
        *heat,
        _memory(device, bar_width, glyphs, planned, wide=True),
    ]
    lines = [Content.styled(name.ljust(_NAME_WIDTH), "bold") + Content("   ").join(meters), _second(device, width)]
    details = _details(device, around.pid) if around.is_detailed else []
    return [*lines, *map(_below, _flowing(details, width - _NAME_WIDTH))]


def host_line(host: Host, glyphs: GlyphSet, width: int, *, has_cpu: bool = False) -> Content:
    """Line of the machine: load, cores, swap and disk, plus memory and CPU temperature unless a device shows them."""
    swap = host.swap_used, host.swap_total
    pieces = [
        _labeled("load ", "–" if host.load is None else f"{host.load:4.1f}"),
        *([_labeled("cores ", _cores(host.cores, glyphs))] if host.cores else []),
        *([] if has_cpu else [_labeled("RAM ", _of(host.ram_used, host.ram_total))]),
        *([_labeled("swap ", _of(*swap))] if swap[1] else []),
        _labeled("disk ", f"{format_bytes(host.disk_free)} free" if host.disk_free is not None else "–"),
    ]
    if not has_cpu:
        heat = "–" if host.cpu_temperature_c is None else f"{host.cpu_temperature_c:3.0f} °C"
        power = "" if host.cpu_power_w is None else f" {host.cpu_power_w:3.0f} W"
        pieces.append(_labeled("CPU ", heat + power))
    return Content.styled("host".ljust(_NAME_WIDTH), "bold") + _fitting(pieces, width - _NAME_WIDTH)


def _narrow(device: Device, name: str, width: int, glyphs: GlyphSet, planned: PlannedMemory | None) -> Content:
    """The essentials on one line, and more values if they fit: a wrapped line would move everything below it."""
    bar_width = 8 if width >= 66 else NARROWEST
    shown = [
        *([Content.styled(name, "bold")] if name else []),
        _temperature(device, bar_width, glyphs, wide=False),
        _memory(device, bar_width, glyphs, planned, wide=False),
    ]
    held = [reason for reason in device.throttle_reasons if reason not in _SETTINGS]
    pressed = memory_word(device)
    rest = [
        *([Content(_power(device, short=True))] if device.power_w is not None else []),
        *([Content(_percent(device.utilization))] if device.utilization is not None else []),
        *([Content.styled(f"memory {pressed}", f"${WORD_COLORS[pressed]}")] if pressed not in ("", OK) else []),
        *([Content.styled(f"held back: {one_line(held[0], 30)}", "$near")] if held else []),
    ]
    for piece in rest:
        if _length(shown) + 3 + piece.cell_length <= width:
            shown.append(piece)
    return Content("   ").join(shown)


def _second(device: Device, width: int) -> Content:
    """Power, load, fan and clock, and as many throttling reasons as fit."""
    pieces = [
        ("", _power(device)),
        ("util ", _percent(device.utilization)),
        ("fan ", _percent(device.fan)),
        ("", "–" if device.clock is None else f"{format_count(device.clock).rjust(5)} MHz"),
    ]
    is_cpu = device.kind == "cpu"
    second = [_labeled(label, value) for label, value in pieces if not (is_cpu and value.strip() in ("–", "– W"))]
    line = _below(Content("   ").join(second))
    if is_cpu and not device.throttle_reasons:
        return line
    label = "   held back by: "
    reasons = one_line(", ".join(device.throttle_reasons), max(width - line.cell_length - len(label), 8))
    return Content.assemble(line, (label, "$muted"), (reasons, "$near") if reasons else "nothing")


def _details(device: Device, pid: int | None) -> list[Content]:
    """Details: the bus, the limits, and other processes on the card."""
    if device.kind == "cpu":
        return []
    now = _link(device.pcie_generation, device.pcie_width)
    best = _link(device.pcie_generation_max, device.pcie_width_max)
    found = [_labeled("PCIe ", now if best in (now, "–") else f"{now} of {best}")]
    if device.pcie_tx is not None or device.pcie_rx is not None:
        found.append(_labeled("to card ", _rate(device.pcie_rx)) + _labeled("  from ", _rate(device.pcie_tx)))
    others = [item for item in device.processes if item.pid != pid]
    if others:
        first = others[0]
        who = one_line(first.name, 20) or f"process {first.pid}"
        owner = f" of {one_line(first.owner, 16)}" if first.owner else ""
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        found.append(_labeled("also on it: ", f"{who}{owner} {format_bytes(first.memory)}{more}"))
    if device.power_limit_min_w is not None and device.power_limit_max_w is not None:
        found.append(_labeled("limit can be ", f"{device.power_limit_min_w:.0f} to {device.power_limit_max_w:.0f} W"))
    if device.temperature_slowdown_c is not None:
        off = device.temperature_shutdown_c
        ending = "" if off is None else f", off at {off:.0f}"
        found.append(_labeled("slows down at ", f"{device.temperature_slowdown_c:.0f} °C{ending}"))
    if device.memory_clock is not None:
        found.append(_labeled("memory clock ", f"{format_count(device.memory_clock)} MHz"))
    if len(device.fans) > 1:
        found.append(_labeled("fans ", " ".join(map(_percent, device.fans)).lstrip()))
    return found


def _link(generation: int | None, width: int | None) -> str:
    return "–" if generation is None or width is None else f"{generation}.0 ×{width}"


def _rate(value: float | None) -> str:
    return ("–" if value is None else f"{format_bytes(value)}/s").rjust(9)


def _lost(device: Device, name: str, width: int) -> Content:
    head = f"{one_line(device.name, 40)}: " if width >= WIDE else ""
    text = one_line(f"{head}{one_line(device.problem, 200)}", max(width - _NAME_WIDTH - 1, 8))
    return Content.assemble((name.ljust(_NAME_WIDTH), "bold"), " ", (text, "$limit"))


def _name(device: Device) -> str:
    return "CPU" if device.kind == "cpu" else f"GPU {device.index}"


def _memory_heat(device: Device) -> list[Content]:
    value, limit = device.memory_temperature_c, device.memory_temperature_limit_c
    if value is None:
        return []
    style = "$limit" if limit is not None and value >= limit else ""
    return [Content.assemble(("memory ", "$muted"), (f"{value:3.0f} °C", style))]


def _temperature(device: Device, width: int, glyphs: GlyphSet, *, wide: bool) -> Content:
    value, word = device.temperature_c, temperature_word(device)
    if value is None:
        return Content.assemble(("–", ""), (" °C", "$muted")) if not wide else Content.styled("temperature –", "$muted")
    limit = temperature_limit(device)
    # The bar starts at 30 °C, a cool idle.
    meter = _bar((value - 30) / max(limit - 30, 1), width, glyphs, word)
    ending, color = f" {word}, limit {limit:.0f}".ljust(21), WORD_COLORS[word]
    if not wide:
        # A narrow panel has no other line for it.
        is_held = any(reason in HOT for reason in device.throttle_reasons)
        told = HELD if is_held else word
        ending = f" {told}".ljust(11) if width > NARROWEST else f" {_SHORT[told]}".ljust(6)
        color = "near" if is_held and word == OK else color
    return Content.assemble(f"{value:3.0f} °C ", meter, (ending, f"${color}"))


def _memory(device: Device, width: int, glyphs: GlyphSet, planned: PlannedMemory | None, *, wide: bool) -> Content:
    name = "RAM" if device.kind == "cpu" else "VRAM"
    if device.memory_used is None or not device.memory_total:
        return Content.assemble((f"{name} ", "$muted"), "–")
    share, word = device.memory_used / device.memory_total, memory_word(device)
    tick = tick_place(None if planned is None else planned.used / device.memory_total, width)
    text = f" {_of(device.memory_used, device.memory_total, 4)}"
    text += f" {share:4.0%}" if wide else ""
    text += f"  plan {planned.bytes / 1e9:.1f}" if wide and planned is not None else ""
    ending = f" {word}" if wide and word != OK else ""
    return Content.assemble(
        (f"{name} ", "$muted"), _bar(share, width, glyphs, word, tick), text, (ending, f"${WORD_COLORS[word]}")
    )


def _bar(share: float, width: int, glyphs: GlyphSet, word: str, tick: int | None = None) -> Content:
    """A bar with an optional tick."""
    full, empty = bar(share, width, glyphs)
    color = {NEAR: "$near", LIMIT: "$limit"}.get(word, "$meter-fill")
    if tick is None:
        return Content.assemble((full, color), (empty, "$meter-track"))
    filled = len(full)
    cells = full + empty
    return Content.assemble(
        (cells[: min(tick, filled)], color),
        (cells[filled:tick], "$meter-track"),
        (glyphs.bar_tick, "bold"),
        (cells[tick + 1 : filled], color),
        (cells[max(tick + 1, filled) :], "$meter-track"),
    )


def _power(device: Device, *, short: bool = False) -> str:
    if device.power_w is None:
        return "– W"
    if device.power_limit_w is None:
        return f"{device.power_w:3.0f} W"
    limit = f"{device.power_limit_w:.0f}"
    used = f"{device.power_w:.0f}".rjust(len(limit))
    return f"{used}/{limit} W" if short else f"{used} W / {limit} W"


def _percent(value: float | None) -> str:
    return ("–" if value is None else f"{value:.0f}%").rjust(4)


def _cores(cores: Sequence[float], glyphs: GlyphSet) -> str:
    """The load of each core as a bar from 0 to 100 %."""
    # A sparkline scales to its values: both ends of the scale are added and cut off again.
    return sparkline([0.0, *cores, 100.0], min(len(cores), _MOST_CORES) + 2, glyphs)[1:-1]


def _of(used: int | None, total: int | None, least: int = 0) -> str:
    """Used and total size in GB, with the used size padded to the total's width and at least ``least`` columns."""
    if used is None or not total:
        return "–"
    whole = f"{total / 1e9:.1f}"
    return f"{used / 1e9:{max(len(whole), least)}.1f}/{whole} GB"


def _labeled(label: str, value: str) -> Content:
    return Content.assemble((label, "$muted"), value)


def _below(content: Content) -> Content:
    return Content(" " * _NAME_WIDTH) + content


def _fitting(pieces: Sequence[Content], width: int) -> Content:
    """The first pieces that fit on a line."""
    return next(iter(_flowing(pieces, width, most=1)), Content(""))


def _flowing(pieces: Sequence[Content], width: int, most: int = _DETAIL_LINES) -> list[Content]:
    """Arrange pieces in at most ``most`` lines; pieces without room are left out."""
    lines: list[list[Content]] = []
    for piece in pieces:
        line = next((line for line in lines if _length(line) + 3 + piece.cell_length <= width), None)
        if line is not None:
            line.append(piece)
        elif len(lines) < most and piece.cell_length <= width:
            lines.append([piece])
    return [Content("   ").join(line) for line in lines]


def _length(pieces: Sequence[Content]) -> int:
    return sum(piece.cell_length for piece in pieces) + 3 * max(len(pieces) - 1, 0)
