"""Beginnings: a new configuration gets what suits its model and data, as ``localtune-tui init`` would write it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from tui.controllers.desktop import Desktop
from tui.data_paths import data_paths
from tui.keys import KeyTable

if TYPE_CHECKING:
    from core.config.document import ConfigDocument
    from core.presets.begin import Beginning

#: The options that a beginning is chosen for.
_CHOSEN_FOR = ("data.train", "data.format", "data.columns", "model.base", "hardware.device")


@dataclass(frozen=True)
class _Subject:
    """The values that a beginning is chosen for."""

    values: tuple[object, ...]

    @classmethod
    def of(cls, document: ConfigDocument) -> _Subject | None:
        """The subject of a configuration; None while it names no data."""
        if not data_paths(document, "train"):
            return None
        return cls(tuple(repr(document.get(name)) for name in _CHOSEN_FOR))


class Beginnings:
    """The controller of new configurations: each gets a preset and held-out rows once it has data, as one edit.

    Values of the user stay as they are. With other data or another model the choice is made anew, until the user has
    taken it back.

    Args:
        settled: Called when a choice has been made, or there is none to make.
    """

    def __init__(self, desktop: Desktop, keys: KeyTable, settled: Callable[[], None]) -> None:
        self._desktop, self._keys, self._settled = desktop, keys, settled
        self._document: ConfigDocument | None = None
        self._subject: _Subject | None = None
        self._given: dict[str, Any] = {}
        self._max_length: dict[str, Any] = {}
        self.preset = ""
        """The name of the preset that has been chosen; empty where none has been."""
        self.is_pending = False
        """Whether a choice is being made."""

    def begin(self, document: ConfigDocument | None) -> None:
        """Follow a configuration from its beginning; none where it has a file, a draft or another tool's values."""
        self._document, self._subject, self.is_pending = document, None, False
        self.preset, self._given, self._max_length = "", {}, {}

    def follow(self, document: ConfigDocument) -> bool:
        """Choose for a configuration that has been edited, where its data or its model are others than before.

        Returns:
            Whether the configuration is one that is chosen for: what was advised for its model is chosen anew with it.
        """
        if document is not self._document or document.path is not None:
            self.is_pending = False
            return False
        self._drop_share(document)
        subject = _Subject.of(document)
        if subject == self._subject:
            return True
        self._subject = subject
        if subject is None:
            # Without data it is as new as at first.
            self.preset, self.is_pending = "", False
            return True
        if self._is_taken_back(document):
            return False
        self.is_pending = True
        self._desktop.run(partial(self._choose, document, subject), "begin")
        return True

    def _is_taken_back(self, document: ConfigDocument) -> bool:
        """Whether the user has undone the choice, or taken another preset."""
        from core.presets.switch import preset_in

        present = preset_in(document)
        return (present.name if present is not None else "") != self.preset

    def _drop_share(self, document: ConfigDocument) -> None:
        """Drop the share that was chosen here once other rows are held out: only one of both can be."""
        share = self._given.get("data.eval_share")
        if share is not None and document.get("data.eval") and document.get("data.eval_share") == share:
            # How often is measured holds for the file as well.
            del self._given["data.eval_share"]
            document.set("data.eval_share", None)
            self._note(document)
            self._tell(document, "no share held out", "✓ data.eval is held out, and no share of the rows any more.")

    async def _choose(self, document: ConfigDocument, subject: _Subject) -> None:
        from core.config.document import ConfigDocument

        # A copy, as a thread reads it; what was chosen before is chosen anew.
        copy = ConfigDocument(document.dumps(), document.path)
        for name, value in self._given.items():
            if copy.get(name) == value:
                copy.set(name, None)
        found, complaint = None, ""
        try:
            found = await asyncio.to_thread(_find, copy)
        except (UserError, OSError) as error:
            complaint = str(error)
        if subject != self._subject or document is not self._document:
            return
        self.is_pending = False
        if complaint and (form := self._desktop.panes.config) is not None:
            form.say(f"✗ No preset is chosen: {complaint}")
        # Those who wait for the choice hear of an edit once the panes follow it.
        if found is None or not self._give(document, found):
            self._settled()

    def _give(self, document: ConfigDocument, found: Beginning) -> bool:
        """Write the choice into the configuration, as one edit; returns whether anything has changed."""
        from core.presets.advised import taken_values
        from core.presets.switch import apply_switch, plan_switch

        before = document.dumps()
        # What was advised for another model is not the user's own.
        for name in found.choice.preset.values.keys() & self._given.keys():
            if document.get(name) == self._given[name]:
                document.set(name, None)
        switch = plan_switch(document, found.choice.preset, max_length=found.choice.max_length)
        apply_switch(document, switch)
        self.preset = switch.preset.name
        values = found.held_out.values if found.held_out is not None else {}
        advised = taken_values(found.advised)
        self._write(document, {**values, **advised}, found.choice.preset.values)
        limit = found.choice.max_length
        self._max_length = {} if limit is None else {"train.max_length": limit}
        self._note(document)
        if document.dumps() == before:
            return False
        count = len(switch.felt)
        parts = [f"preset {switch.preset.name}", f"{count} value{'' if count == 1 else 's'}"]
        parts += [str(found.held_out)] if found.held_out is not None else []
        parts += [f"{len(advised)} as advised for {found.advised[0].advice.models}"] if advised else []
        why, undo = self._keys["config.presets"].display, self._keys["config.undo"].display
        said = " · ".join(parts)
        self._tell(document, said, f"✓ {said} · {why} shows why · {undo} undoes")
        if not self._desktop.is_covered:
            pane = self._keys["app.config"].display
            self._desktop.tell(f"{said}. In Config ({pane}) {why} shows why, {undo} undoes.", seconds=8)
        return True

    def _write(self, document: ConfigDocument, values: dict[str, Any], preset: Mapping[str, Any]) -> None:
        """Write what holds rows out and what is advised, in place of the preset's and of what was written here before;
        the user's stays.
        """
        if document.get("eval.every_steps") is not None:
            values.pop("eval.every_epochs", None)
        for name in {*values, *self._given}:
            written, value = document.get(name), values.get(name)
            if value is None and name in preset:
                continue
            if written is None or written in (self._given.get(name), preset.get(name)):
                if written != value:
                    document.set(name, value)
            else:
                values.pop(name, None)
        self._given = values

    def _note(self, document: ConfigDocument) -> None:
        """Note in the configuration what has been chosen here, so that it is never taken for the user's own."""
        from core.presets.switch import Chosen, note_chosen

        chosen = Chosen(self.preset, {**self._max_length, **self._given})
        document.rewrite(note_chosen(document.dumps(), chosen))

    def _tell(self, document: ConfigDocument, label: str, text: str) -> None:
        """Record the edit in the form, which tells the app about it."""
        form = self._desktop.panes.config
        if form is not None and form.document is document:
            form.edited(label, text)


def _find(document: ConfigDocument) -> Beginning:
    """The beginning of a configuration; slow.

    Raises:
        UserError: If the configuration has a problem, or its model is too large for the card.
    """
    from core.hardware.card import find_card
    from core.presets.begin import begin

    config = document.validate()
    return begin(config, find_card(gpu=config.hardware.gpu) if config.hardware.device != "cpu" else None)
