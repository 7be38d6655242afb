"""Settings of a live run: learning rate, evaluation and checkpoint intervals, heat and power limits, quiet hours,
deadline and energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from textual import on
from textual.content import Content

from core.config.facts import Facts
from core.config.live import TRAINING, changed, read_changes
from core.config.rules.check import check_rules
from core.config.schema import Config
from core.errors import UserError
from core.text import one_line
from core.units import exact_number, format_number
from tui.screens.box import FormScreen, InputForm
from tui.state import RunView
from tui.widgets.forms.inputs import SafeInput
from tui.widgets.forms.option_field import format_value
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextBlock

#: The settings, in this order.
SETTINGS = (
    *TRAINING,
    "hardware.temperature_limit_c",
    "hardware.power_limit_w",
    "night.quiet_hours",
    "night.deadline",
    "night.energy_kwh",
)
LABELS = {
    "train.learning_rate": "learning rate",
    "eval.every_steps": "evaluate every",
    "checkpoint.every_steps": "save every",
    "hardware.temperature_limit_c": "temperature",
    "hardware.power_limit_w": "average power",
    "night.quiet_hours": "quiet hours",
    "night.deadline": "done by",
    "night.energy_kwh": "energy",
}
HINTS = {
    "checkpoint.every_steps": "steps; empty: ten times in the run",
    "hardware.temperature_limit_c": "°C at the most; empty: no limit",
    "hardware.power_limit_w": "W at the most; empty: no limit",
    "night.quiet_hours": "as 22:00-07:00; empty: none",
    "night.deadline": "a time, as 07:00; empty: no deadline",
    "night.energy_kwh": "kWh at the most; empty: no limit",
}
_KEYS = (("enter", "apply"), ("tab", "next"), ("esc", "cancel"))


class RunSettings(FormScreen[None]):
    """Dialog of the settings, checked while typing; it stays open until the worker has applied the changes.

    Args:
        view: The run.
        config: The configuration at the start of the run.
        send: Sends changes to the worker; the answer goes to :meth:`accept` or :meth:`refuse`.
    """

    DEFAULT_CSS = style_of("RunSettings")
    HELP = "settings"
    ENTER_TAKES = True

    def __init__(self, view: RunView, config: Config, send: Callable[[dict[str, Any]], None]) -> None:
        self._view, self._config, self._send = view, config, send
        self._present: dict[str, Any] = {}
        rows = {}
        for name in SETTINGS:
            section, _, key = name.partition(".")
            self._present[name] = view.history.settings.get(name, getattr(getattr(config, section), key))
            line = SafeInput(format_value(self._present[name]), id=f"line-{key}-{section}")
            rows[name] = (LABELS[name], line, self._hint(name))
        super().__init__(InputForm("Settings of the run", rows, _KEYS, self._about()))
        self._lines = self._form.lines
        self._last_line = self._lines[SETTINGS[0]]
        self._is_waiting = False

    def _about(self) -> Content:
        text = "What is changed holds from the next step on; checkpoints keep it."
        step = self._view.history.last_step
        if step is not None:
            scheduler = self._config.train.scheduler
            text += f"\nStep {step.step} had learning rate {format_number(step.lr)}, by the {scheduler} schedule."
        return Content(text)

    def _hint(self, name: str) -> str:
        if name == "train.learning_rate":
            return f"the peak of the schedule, {format_value(self._present[name])} now"
        if name in HINTS:
            return HINTS[name]
        epochs = self._config.eval.every_epochs
        return f"steps; empty: {f'every {exact_number(epochs)} epochs' if epochs is not None else 'at the end only'}"

    # Typing.

    @on(SafeInput.Changed)
    def _typed(self, message: SafeInput.Changed) -> None:
        message.stop()
        self._form.answer("")
        name = next(name for name, line in self._lines.items() if line is message.input)
        self._check(name)

    def _check(self, name: str) -> dict[str, Any] | None:
        """Show the error of an input below it; returns its change, empty for none, or None if it is invalid."""
        line, remark = self._lines[name], ""
        change: dict[str, Any] | None = {}
        # An unedited input is not validated: its value may have become invalid.
        if line.value.strip() != format_value(self._present[name]):
            try:
                change = read_changes(self._config, {name: line.value})
                remark = self._warning(name, change)
            except UserError as error:
                change, remark = None, f"✗ {error.message}"
        style = "$limit" if change is None else "$near"
        self.query_one(f"#remark-{line.id}", TextBlock).show(Content.styled(one_line(remark, 300), style))
        return change

    def _warning(self, name: str, change: Mapping[str, Any]) -> str:
        """The warning of the configuration's rules about a value."""
        values = {**self._present, **change}
        if values["eval.every_steps"] is not None:
            # An interval in steps replaces one in epochs.
            values["eval.every_epochs"] = None
        data = self._view.history.data
        try:
            remarks = check_rules(changed(self._config, values), Facts(rows=data.ordered if data is not None else None))
        except ValidationError:
            return ""
        return next((f"! {remark.sentence}" for remark in remarks if name in remark.options), "")

    # Changes.

    def take(self) -> None:
        """Send the changes; an input with an error is focused."""
        if self._is_waiting:
            return
        asked: dict[str, Any] = {}
        for name, line in self._lines.items():
            change = self._check(name)
            if change is None:
                line.focus()
                return
            asked |= change
        if not asked:
            self.dismiss(None)
            return
        self._let_type(False)
        self._form.answer("Sent. The worker answers between two steps; esc does not take it back.", "$muted")
        self._send(asked)

    def _let_type(self, on: bool) -> None:
        """Enable the inputs, or disable them while the answer is awaited."""
        if not on and isinstance(self.focused, SafeInput):
            self._last_line = self.focused
        self._is_waiting = not on
        for line in self._lines.values():
            line.disabled = not on
        if on:
            self._last_line.focus()

    def accept(self, changes: Mapping[str, Any]) -> None:
        """Close the dialog: the worker has applied the changes."""
        self._present |= changes
        if self.is_current:
            self.dismiss(None)
        else:
            self._let_type(True)
            self._form.answer("Changed.", "$ok")

    def refuse(self, error: UserError) -> None:
        """Show the error of a worker that refuses or does not answer; the typed text stays."""
        self._let_type(True)
        self._form.answer(f"✗ {error}")
