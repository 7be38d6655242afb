"""The panel of a run's devices as meters: temperature, memory, power, load. A value not reported is a dash."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from core.hardware.snapshot import Device
from core.text import one_line
from core.units import format_count
from tui.glyphs import BRAILLE, GlyphSet
from tui.widgets.charts.meter import LIMIT, NEAR, OK, WORD_COLORS, bar, memory_word, temperature_limit, temperature_word
from tui.widgets.text_block import TextBlock

#: Minimum columns for two lines a device, with wide bars.
WIDE = 96
#: Maximum number of devices shown; further ones are counted.
MOST = 4


class DevicePanel(TextBlock):
    """A panel of devices, one line each, two where the pane is wide.

    Args:
        glyphs: The glyphs of the bars.
    """

    def __init__(self, glyphs: GlyphSet = BRAILLE, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._glyphs = glyphs
        self._devices: Sequence[Device] = ()
        self._stale = ""

    def show_devices(self, devices: Sequence[Device], stale: str = "") -> None:
        """Show a sample; ``stale`` is its age in words, where it is old."""
        self._devices, self._stale = devices, stale
        self._compose_lines()

    def on_resize(self) -> None:
        """Lay out the meters for the new width."""
        self._compose_lines()

    def _compose_lines(self) -> None:
        width = self.size.width or self.container_size.width
        shown = self._devices[:MOST]
        lines: list[Content] = []
        for device in shown:
            lines += device_lines(device, width, self._glyphs, several=len(self._devices) > 1)
        if len(self._devices) > MOST:
            lines.append(Content.styled(f"{len(self._devices) - MOST} more devices", "$muted"))
        if lines and self._stale:
            lines = [line.stylize("$muted") for line in lines]
            fits = lines[-1].cell_length + 3 + len(self._stale) <= width
            lines += [] if fits else [Content("")]
            lines[-1] = Content.assemble(lines[-1], (f"   {self._stale}", "$near"))
        self.show(Content("\n").join(lines))


def device_lines(device: Device, width: int, glyphs: GlyphSet, *, several: bool = False) -> list[Content]:
    """The lines of a device in a number of columns: one when narrow, two when wide."""
    wide = width >= WIDE
    name = ("CPU" if device.kind == "cpu" else f"GPU {device.index}") if wide or several or device.kind == "cpu" else ""
    memory_name = "RAM" if device.kind == "cpu" else "VRAM"
    bar_width = max(min((width - 62) // 2, 24), 8) if wide else (8 if width >= 66 else 5)
    parts = [_temperature(device, bar_width, glyphs, wide), _memory(device, memory_name, bar_width, glyphs, wide)]
    if not wide:
        rest = [text for text in (_power(device, short=True), _percent(device.utilization)) if text != "–"]
        shown = [*([Content.styled(name, "bold")] if name else []), *parts]
        # Power and utilization as far as there is room: a line that wraps would move all below it.
        for piece in map(Content, rest):
            if sum(part.cell_length + 3 for part in shown) + piece.cell_length <= width:
                shown.append(piece)
        return [Content("   ").join(shown)]
    title = Content.styled(name.ljust(6), "bold")
    pieces = [
        ("", _power(device)),
        ("util ", _percent(device.utilization).rjust(4)),
        ("fan ", _percent(device.fan).rjust(4)),
        ("", "–" if device.clock is None else f"{format_count(device.clock)} MHz"),
    ]
    second = [
        Content.assemble((label, "$muted"), value)
        for label, value in pieces
        if not (device.kind == "cpu" and value.strip() in ("–", "– W"))
    ]
    if device.kind != "cpu" or device.throttle_reasons:
        reasons = ", ".join(one_line(reason, 40) for reason in device.throttle_reasons) or "nothing"
        second.append(
            Content.assemble(("held back by: ", "$muted"), (reasons, "" if reasons == "nothing" else "$near"))
        )
    return [title + Content("   ").join(parts), Content(" " * 6) + Content("   ").join(second)]


def _temperature(device: Device, width: int, glyphs: GlyphSet, wide: bool) -> Content:
    value, word = device.temperature_c, temperature_word(device)
    if value is None:
        return Content.assemble(("–", ""), (" °C", "$muted")) if not wide else Content.styled("temperature –", "$muted")
    limit = temperature_limit(device)
    # 30 °C is a cool idle; the part of the scale that matters is between it and the limit.
    meter = _bar((value - 30) / max(limit - 30, 1), width, glyphs, word)
    ending = f" {word}, limit {limit:.0f}" if wide else f" {word}"
    return Content.assemble(f"{value:3.0f} °C ", meter, (ending.ljust(21) if wide else ending, f"${WORD_COLORS[word]}"))


def _memory(device: Device, name: str, width: int, glyphs: GlyphSet, wide: bool) -> Content:
    if device.memory_used is None or not device.memory_total:
        return Content.assemble((f"{name} ", "$muted"), "–")
    share, word = device.memory_used / device.memory_total, memory_word(device)
    text = f" {device.memory_used / 1e9:4.1f}/{device.memory_total / 1e9:.1f} GB"
    text += f" {share:4.0%}" if wide else ""
    ending = "" if word == OK else f" {word}"
    return Content.assemble(
        (f"{name} ", "$muted"), _bar(share, width, glyphs, word), text, (ending, f"${WORD_COLORS[word]}")
    )


def _bar(share: float, width: int, glyphs: GlyphSet, word: str) -> Content:
    full, empty = bar(share, width, glyphs)
    color = {NEAR: "$near", LIMIT: "$limit"}.get(word, "$meter-fill")
    return Content.assemble((full, color), (empty, "$meter-track"))


def _power(device: Device, *, short: bool = False) -> str:
    if device.power_w is None:
        return "–" if short else "– W"
    if device.power_limit_w is None:
        return f"{device.power_w:3.0f} W"
    return (
        f"{device.power_w:.0f}/{device.power_limit_w:.0f} W"
        if short
        else f"{device.power_w:3.0f} W / {device.power_limit_w:.0f} W"
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}%"
