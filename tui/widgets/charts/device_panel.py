"""Panel of device meters: temperature, memory, power, load. A missing value is a dash."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from textual.content import Content

from core.hardware.snapshot import Device, Host
from core.text import one_line
from core.units import format_bytes, format_count
from tui.glyphs import BRAILLE, GlyphSet
from tui.meters import (
    LIMIT,
    NEAR,
    OK,
    SHORT_WORDS,
    WORD_COLORS,
    memory_percent,
    memory_temperature_word,
    memory_word,
    stale_words,
    temperature_limit,
    temperature_word,
    worst,
)
from tui.widgets.charts.bars import bar, sparkline, tick_place
from tui.widgets.text_block import TextBlock

if TYPE_CHECKING:
    from core.runs.record.events import MemoryEvent

#: Minimum columns for wide bars and all values, and for a device on one line.
WIDE, ONE_LINE = 96, 76
#: Maximum number of devices shown; further ones are counted.
MOST = 4
#: Maximum number of cores drawn; more are thinned out.
_MOST_CORES = 32
#: Throttling reasons that come from settings and are left out of the narrow line.
_SETTINGS = ("application clocks", "sync boost", "display clock")
#: Throttling reasons caused by heat or by the power supply.
HOT = ("thermal slowdown", "hardware thermal slowdown", "hardware slowdown", "power brake", "memory temperature")
#: Word for such throttling in a narrow pane, and the cells of the narrowest bars.
HELD, NARROWEST = "! held back", 5
_SILENT = "   the driver does not answer"
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
        age: The age of stale readings, in the place of the temperature's word; empty for fresh ones.
        more: The key for readings that a narrow panel has no room for; empty to name none.
    """

    planned: Callable[[Device], PlannedMemory | None] = lambda _: None
    host: Host | None = None
    pid: int | None = None
    is_detailed: bool = False
    age: str = ""
    more: str = ""


class DevicePanel(TextBlock):
    """Panel of devices: a line or two each, and all details in a pane that is wide and tall.

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
            several, own = len(self._devices) > 1, stale_words(device.age_s)
            around = replace(self._around, age=own or self._stale)
            found = device_lines(device, width, self._glyphs, several=several, around=around)
            if own and found[-1].cell_length + len(_SILENT) <= width:
                found[-1] += Content.styled(_SILENT, "$near")
            lines += found
        if len(self._devices) > MOST:
            lines.append(Content.styled(f"{len(self._devices) - MOST} more devices", "$muted"))
        if lines and self._around.host is not None and self._around.is_detailed and width >= WIDE:
            has_cpu = any(device.kind == "cpu" for device in self._devices)
            host = host_line(self._around.host, self._glyphs, width, has_cpu=has_cpu)
            lines.append(host.stylize("$muted") if self._stale else host)
        self.show(Content("\n").join(lines))


def _dimmed(line: Content, age: str) -> Content:
    """A line of stale values, their age bright."""
    dim, start = line.stylize("$muted"), line.plain.find(age)
    return dim.stylize("$near", start, start + len(age)) if start >= 0 else dim


def device_lines(
    device: Device, width: int, glyphs: GlyphSet, *, several: bool = False, around: Around | None = None
) -> list[Content]:
    """Lines of a device: one, or two if very narrow or wide, and more for details.

    Args:
        device: The device.
        width: Columns.
        glyphs: The glyphs of the bars.
        several: There are other devices, so show its name.
        around: The context.
    """
    around = around or Around()
    lines = _device_lines(device, width, glyphs, several=several, around=around)
    return [_dimmed(line, around.age) for line in lines] if around.age else lines


def _device_lines(device: Device, width: int, glyphs: GlyphSet, *, several: bool, around: Around) -> list[Content]:
    wide = width >= WIDE
    name = _name(device) if wide or several or device.kind == "cpu" else ""
    if device.problem:
        return [_lost(device, name or _name(device), width)]
    planned = around.planned(device)
    if not wide:
        return _narrow(device, name, width, glyphs, planned, around)
    room = width - _NAME_WIDTH - 26 - _memory(device, 1, glyphs, planned, wide=True).cell_length
    bar_width = max(min(room // 2, 24), NARROWEST)
    meters = [
        _temperature(device, bar_width, glyphs, wide=True, age=around.age),
        _memory(device, bar_width, glyphs, planned, wide=True),
    ]
    lines = [Content.styled(name.ljust(_NAME_WIDTH), "bold") + Content("   ").join(meters), _second(device, width)]
    details = _details(device, around.pid) if around.is_detailed else []
    return [*lines, *map(_below, _flowing(details, width - _NAME_WIDTH))]


def all_readings(
    devices: Sequence[Device], width: int, glyphs: GlyphSet, around: Around, figures: Sequence[Content] = ()
) -> list[Content]:
    """Every reading of the devices and of the machine, on as many lines as they need.

    Args:
        devices: The devices.
        width: Columns.
        glyphs: The glyphs of the bars.
        around: The context.
        figures: Figures of the run, which come first.
    """
    lines = _flowing(figures, width, len(figures))
    for device in devices:
        named = Content.assemble((_name(device), "bold"), (f"  {one_line(device.name, 40)}", "$muted"))
        if device.problem:
            lines += [named, Content.styled(one_line(device.problem, 200), "$limit")]
            continue
        age = stale_words(device.age_s) or around.age
        memory = _memory(device, 1, glyphs, around.planned(device), wide=True).cell_length
        bar_width = max(min(width - memory, 24), NARROWEST)
        held = one_line(", ".join(device.throttle_reasons), 200) or "nothing"
        pieces = [
            _temperature(device, bar_width, glyphs, wide=True, age=age),
            _memory(device, bar_width, glyphs, around.planned(device), wide=True),
            *_values(device),
            _labeled("held back by: ", held),
            *_details(device, around.pid),
        ]
        found = _flowing(pieces, width, len(pieces))
        lines += [named, *(found if not age else [_dimmed(line, age) for line in found])]
    if around.host is not None:
        pieces = _host_values(around.host, glyphs, has_cpu=any(device.kind == "cpu" for device in devices))
        lines += [Content.styled("host", "bold"), *_flowing(pieces, width, len(pieces))]
    return lines


def host_line(host: Host, glyphs: GlyphSet, width: int, *, has_cpu: bool = False) -> Content:
    """Line of the machine: load, cores, swap and disk, plus memory and CPU temperature unless a device shows them."""
    pieces = _host_values(host, glyphs, has_cpu=has_cpu)
    return Content.styled("host".ljust(_NAME_WIDTH), "bold") + _fitting(pieces, width - _NAME_WIDTH)


def _host_values(host: Host, glyphs: GlyphSet, *, has_cpu: bool) -> list[Content]:
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
    return pieces


def _narrow(
    device: Device, name: str, width: int, glyphs: GlyphSet, planned: PlannedMemory | None, around: Around
) -> list[Content]:
    """The essentials on one line, or two, and more values if they fit: a wrapped line would move everything below."""
    is_one = width >= ONE_LINE
    is_tight = bool(name) or (device.memory_total or 0) >= 100e9
    bar_width = 8 if not is_one else NARROWEST if is_tight else NARROWEST + 1
    head = f"{name}  " if name else ""
    heat = _temperature(device, bar_width, glyphs, wide=False, room=8 if is_one and name else 12, age=around.age)
    memory = _memory(device, bar_width, glyphs, planned, wide=False)
    shown = [Content.styled(head, "bold") + heat, *([memory] if is_one else [])]
    held = [reason for reason in device.throttle_reasons if reason not in _SETTINGS]
    rest = [
        *([Content(_power(device, short=True))] if device.power_w is not None else []),
        *([_labeled("load ", _percent(device.utilization))] if device.utilization is not None else []),
        *([Content.styled(f"held back: {one_line(held[0], 30)}", "$near")] if held else []),
    ]
    for piece in rest:
        if _length([*shown, piece], 2) <= width:
            shown.append(piece)
    line = Content("  ").join(shown)
    if is_one:
        return [line]
    below = Content(" " * len(head)) + memory
    for text in (" readings", " more") if around.more else ():
        named = Content.assemble(below, "  ", (around.more, "$primary bold"), text)
        if named.cell_length <= width:
            return [line, named]
    return [line, below]


def _values(device: Device) -> list[Content]:
    """Power, load, temperature of the memory, fan and clock."""
    pieces = [
        _labeled("", _power(device)),
        _labeled("util ", _percent(device.utilization)),
        *([_memory_heat(device)] if device.memory_temperature_c is not None else []),
        _labeled("fan ", _percent(device.fan)),
        _labeled("", "–" if device.clock is None else f"{format_count(device.clock).rjust(5)} MHz"),
    ]
    return pieces if device.kind != "cpu" else [piece for piece in pieces if "–" not in piece.plain]


def _second(device: Device, width: int) -> Content:
    """The values of a device, and as many throttling reasons as fit."""
    label = "   held back by: "
    line = _below(_fitting(_values(device), width - _NAME_WIDTH - len(label) - 8))
    if device.kind == "cpu" and not device.throttle_reasons:
        return line
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
        ending = "" if off is None else f", off at {off:.0f} °C"
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


def _memory_heat(device: Device) -> Content:
    word = memory_temperature_word(device)
    told = (f" {word}", f"${WORD_COLORS[word]}") if word not in ("", OK) else ""
    return Content.assemble(("memory ", "$muted"), f"{device.memory_temperature_c:3.0f} °C", told)


def _temperature(device: Device, width: int, glyphs: GlyphSet, *, wide: bool, room: int = 17, age: str = "") -> Content:
    """The temperature, with a bar of a width, and its word, or the age of all readings, in a room; in a narrow panel
    that of the memory, if it is closer to its limit: there is no other place for it."""
    value, word, limit, label = device.temperature_c, temperature_word(device), temperature_limit(device), ""
    hot, hottest = memory_temperature_word(device), device.memory_temperature_limit_c
    if not wide and hottest is not None and hot and worst((word or OK, hot)) != (word or OK):
        value, word, limit, label = device.memory_temperature_c, hot, hottest, "mem "
    if value is None:
        ending = (f" {age}" if age else "", "$near")
        if wide:
            return Content.assemble(("temperature –", "$muted"), ending)
        return Content.assemble("–", (" °C", "$muted"), ending)
    # The bar starts at 30 °C, a cool idle.
    meter = _bar((value - 30) / max(limit - 30, 1), width, glyphs, word)
    told, color = f"{word}, limit {limit:.0f}" if word == OK else f"{word} {limit:.0f}", WORD_COLORS[word]
    if len(f" {told} °C") <= room:
        told += " °C"
    if not wide:
        is_held = any(reason in HOT for reason in device.throttle_reasons)
        told = HELD if is_held else SHORT_WORDS[word]
        color = "near" if is_held and word == OK else color
    told = age or told
    return Content.assemble(
        (label, "$muted"), f"{value:3.0f} °C ", meter, (f" {told}".ljust(room - len(label)), f"${color}")
    )


def _memory(device: Device, width: int, glyphs: GlyphSet, planned: PlannedMemory | None, *, wide: bool) -> Content:
    name = "RAM" if device.kind == "cpu" else "VRAM"
    percent, word, total = memory_percent(device), memory_word(device), device.memory_total
    if percent is None or not total:
        return Content.assemble((f"{name} ", "$muted"), "–")
    tick = tick_place(None if planned is None else planned.used / total, width)
    text = f" {_of(device.memory_used, total, 4)} {percent:3d}%"
    text += f"  plan {planned.bytes / 1e9:.1f} GB" if wide and planned is not None else ""
    told = "" if word == OK else f" {word if wide else SHORT_WORDS[word]}"
    # The longest word has its room, so that nothing moves when it comes.
    ending = (told.ljust(13 if wide else 8), f"${WORD_COLORS[word]}")
    return Content.assemble((f"{name} ", "$muted"), _bar(percent / 100, width, glyphs, word, tick), text, ending)


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


def _length(pieces: Sequence[Content], gap: int = 3) -> int:
    return sum(piece.cell_length for piece in pieces) + gap * max(len(pieces) - 1, 0)
