"""Advised values in the configuration: they follow its base model."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from core.text import one_line
from tui.controllers.desktop import Desktop
from tui.keys import KeyTable

if TYPE_CHECKING:
    from core.config.document import ConfigDocument

_BASE = "model.base"


class AdvisedBase:
    """The controller of advised values: where another base model is chosen, those of the former one become those of the
    new one, as one edit.

    Args:
        desktop: Where the form is.
        keys: Keys that a message names.
    """

    def __init__(self, desktop: Desktop, keys: KeyTable) -> None:
        self._desktop, self._keys = desktop, keys
        self._document: ConfigDocument | None = None
        self._base = ""

    def hold(self, document: ConfigDocument) -> None:
        """Note the base of a configuration that has been opened, or whose values have followed it otherwise."""
        self._document, self._base = document, _base_of(document)

    def follow(self, document: ConfigDocument) -> None:
        """Follow a configuration that has been edited."""
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
        # What has been edited meanwhile is the user's own.
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
