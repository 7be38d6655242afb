"""Automatic values of the configuration: a preset for a new one, and advised values of its base model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.text import one_line
from tui.files import data_paths
from tui.main_screen import Desktop

if TYPE_CHECKING:
    from core.config.document import ConfigDocument
    from core.presets.begin import Beginning

_BASE = "model.base"
#: Options that the choice of a preset depends on.
_CHOSEN_FOR = ("data.train", "data.format", "data.columns", "model.base", "hardware.device")


def _subject_of(document: ConfigDocument) -> tuple[object, ...] | None:
    """The values that the choice of a preset depends on; None if the configuration names no data."""
    return tuple(repr(document.get(name)) for name in _CHOSEN_FOR) if data_paths(document, "train") else None


class PresetChooser:
    """Chooser of a preset and held-out rows for a new configuration once it has data, like ``localtune-tui init``.

    The choice is a single edit, and does not change the user's values. It is repeated when the data or the model
    changes, until the user undoes it.

    Args:
        desktop: The panes and notices.
        settled: Called when nothing is left to choose.
    """

    def __init__(self, desktop: Desktop, settled: Callable[[], None]) -> None:
        self._desktop, self._keys, self._settled = desktop, desktop.keys, settled
        self._document: ConfigDocument | None = None
        self._subject: tuple[object, ...] | None = None
        self._given: dict[str, Any] = {}
        self._max_length: dict[str, Any] = {}
        self.preset = ""
        """The name of the chosen preset; empty if there is none."""
        self.is_pending = False
        """True while a choice is being made."""

    def begin(self, document: ConfigDocument | None) -> None:
        """Start with a new configuration; None for one with a file, a draft or imported values."""
        self._document, self._subject, self.is_pending = document, None, False
        self.preset, self._given, self._max_length = "", {}, {}

    def follow(self, document: ConfigDocument) -> bool:
        """Choose a preset after an edit, if the data or the model has changed.

        Returns:
            True if presets are chosen for this configuration; the model's advised values come with them.
        """
        if document is not self._document or document.path is not None:
            self.is_pending = False
            return False
        self._drop_share(document)
        subject = _subject_of(document)
        if subject == self._subject:
            return True
        self._subject = subject
        if subject is None:
            # Without data, it counts as new again.
            self.preset, self.is_pending = "", False
            return True
        if self._is_taken_back(document):
            return False
        self.is_pending = True
        self._desktop.run(partial(self._choose, document, subject), "begin")
        return True

    def _is_taken_back(self, document: ConfigDocument) -> bool:
        """True if the user has undone the choice, or chosen another preset."""
        from core.presets.switch import preset_in

        present = preset_in(document)
        return (present.name if present is not None else "") != self.preset

    def _drop_share(self, document: ConfigDocument) -> None:
        """Drop the chosen share once a file is held out instead."""
        share = self._given.get("data.eval_share")
        if share is not None and document.get("data.eval") and document.get("data.eval_share") == share:
            # The interval of evaluations stays, as it suits the file too.
            del self._given["data.eval_share"]
            document.set("data.eval_share", None)
            self._note(document)
            self._tell(document, "no share held out", "✓ data.eval is held out; data.eval_share no longer is.")

    async def _choose(self, document: ConfigDocument, subject: tuple[object, ...]) -> None:
        from core.config.document import ConfigDocument

        # A copy for the thread, without the values of the last choice.
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
        # After an edit, the form calls the app, which settles it.
        if found is None or not self._give(document, found):
            self._settled()

    def _give(self, document: ConfigDocument, found: Beginning) -> bool:
        """Write the choice into the configuration as a single edit; returns True if anything changed."""
        from core.presets.advised import taken_values
        from core.presets.switch import apply_switch, plan_switch

        before = document.dumps()
        # Values given for the previous model are not the user's.
        for name in found.choice.preset.values.keys() & self._given.keys():
            if document.get(name) == self._given[name]:
                document.set(name, None)
        switch = plan_switch(document, found.choice.preset, max_length=found.choice.max_length)
        apply_switch(document, switch)
        self.preset = switch.preset.name
        values = found.held_out.values if found.held_out is not None else {}
        advised = taken_values(found.advised)
        self._write(document, {**values, **advised}, found.choice.preset.values)
        values = {name: value for name, value in values.items() if name in self._given}
        limit = found.choice.max_length
        self._max_length = {} if limit is None else {"train.max_length": limit}
        self._note(document)
        if document.dumps() == before:
            return False
        # In the words of the start card.
        parts = [f"preset {switch.preset.name}"]
        parts += [f"{len(values)} for the rows", str(found.held_out)] if found.held_out is not None else []
        parts += [f"{len(advised)} as advised for {found.advised[0].advice.models}"] if advised else []
        why, undo = self._keys["config.presets"].display, self._keys["config.undo"].display
        said = " · ".join(parts)
        self._tell(document, said, f"✓ {said} · {why} shows why · {undo} undoes")
        return True

    def _write(self, document: ConfigDocument, values: dict[str, Any], preset: Mapping[str, Any]) -> None:
        """Write held-out rows and advised values; they replace values of the preset and the last choice only."""
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
        """Note the chosen values in the configuration, to distinguish them from the user's."""
        from core.presets.switch import Chosen, note_chosen

        chosen = Chosen(self.preset, {**self._max_length, **self._given})
        document.rewrite(note_chosen(document.dumps(), chosen))

    def _tell(self, document: ConfigDocument, label: str, text: str) -> None:
        """Record the edit in the form, which shows it."""
        form = self._desktop.panes.config
        if form is not None and form.document is document:
            form.edited(label, text)


def _find(document: ConfigDocument) -> Beginning:
    """The preset and the held-out rows for a configuration; blocks.

    Raises:
        UserError: If the configuration has a problem, or its model is too large for the card.
    """
    from core.hardware.card import find_card
    from core.presets.begin import begin

    config = document.validate()
    return begin(config, find_card(gpu=config.hardware.gpu) if config.hardware.device != "cpu" else None)


class AdviceFollower:
    """Updater of advised values: a change of the base model replaces them as a single edit.

    Args:
        desktop: The panes.
    """

    def __init__(self, desktop: Desktop) -> None:
        self._desktop, self._keys = desktop, desktop.keys
        self._document: ConfigDocument | None = None
        self._base = ""

    def hold(self, document: ConfigDocument) -> None:
        """Note the base of a configuration without changing values."""
        self._document, self._base = document, _base_of(document)

    def follow(self, document: ConfigDocument) -> None:
        """Update the advised values after an edit of the base model."""
        before = self._base
        is_same = document is self._document
        self.hold(document)
        if is_same and self._base != before:
            self._desktop.run(partial(self._follow, document, before, self._base), "advice")

    async def _follow(self, document: ConfigDocument, before: str, after: str) -> None:
        from core.config.document import ConfigDocument
        from core.presets.advised import follow_base

        directory = document.path.parent if document.path is not None else None
        # A copy, as a thread reads it.
        copy = ConfigDocument(document.dumps(), document.path)
        changes = await asyncio.to_thread(follow_base, copy, before, after, directory)
        form = self._desktop.panes.config
        if form is None or form.document is not document or _base_of(document) != after:
            return
        # Values edited meanwhile are the user's.
        changes = tuple(change for change in changes if document.get(change.option) == change.before)
        if not changes:
            return
        for change in changes:
            document.set(change.option, change.after)
        names = ", ".join(change.option for change in changes)
        is_advised = any(change.after is not None for change in changes)
        why = f"As advised for {one_line(after, 60)}" if is_advised else "Advised for the former base, and gone"
        undo = self._keys["config.undo"].display
        form.edited("values advised for the base model", f"✓ {why}: {names} · {undo} undoes")


def _base_of(document: ConfigDocument) -> str:
    from core.config.schema import find_option

    option = find_option(_BASE)
    value = document.get(_BASE)
    return value if isinstance(value, str) else str(option.default if option is not None else "")
