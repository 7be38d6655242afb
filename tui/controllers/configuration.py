"""The part of the app that changes the configuration for others: options that panes and screens choose."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from textual import on

from core.config.choices import Objective
from core.errors import UserError
from core.text import one_line
from tui import messages
from tui.controllers.run_control import ControlDesk
from tui.data_paths import data_paths, path_text

if TYPE_CHECKING:
    from core.config.document import ConfigDocument


class FormDesk(ControlDesk):
    """Opens the screens in which options are chosen, and puts what was chosen into the configuration."""

    def configure_data(self, document: ConfigDocument) -> None:
        """Let the data pane know the model, the template and how rows are read."""
        if (pane := self.pane("data")) is not None:
            pane.configure(document)

    def set_options(self, values: Mapping[str, Any], notice: str = "") -> None:
        """Give options other values, all of them or none, and show that everywhere.

        Args:
            values: As in :class:`~tui.messages.OptionsChosen`.
            notice: What is said when it is done.
        """
        document = self.state.document
        if document is None:
            return
        before = {name: document.get(name) for name in values}
        try:
            for name, value in values.items():
                if (written := _written(document, before[name], value)) != before[name]:
                    document.set(name, written)
        except UserError as error:
            for name, value in before.items():
                if document.get(name) != value:
                    document.set(name, value)
            self.fail("The configuration is not changed", error)
            return
        self.configure_data(document)
        if (pane := self.pane("config")) is not None:
            pane.load(document)
        if notice:
            self.notify(one_line(notice, 200), timeout=4, markup=False)
        self.show_header()

    @on(messages.OptionsChosen)
    def _options_chosen(self, message: messages.OptionsChosen) -> None:
        self.set_options(message.values, message.notice)

    @on(messages.FormRequested)
    def _form_requested(self, message: messages.FormRequested) -> None:
        document = self.state.document
        if document is None or len(self.screen_stack) > 1:
            return
        if message.form == "template":
            self._open_template(document)
        else:
            self._open_columns(document)

    def _open_template(self, document: ConfigDocument) -> None:
        from tui.datasets.plan import plan_tokens
        from tui.screens.template.template import TemplateScreen

        plan, pane = plan_tokens(document), self.pane("data")
        view = pane.view if pane is not None else None
        index = pane.index if view is not None else 0
        self.push_screen(TemplateScreen(plan, view, index))

    def _open_columns(self, document: ConfigDocument) -> None:
        from tui.screens.columns.columns import ColumnsScreen
        from tui.screens.columns.columns_view import ColumnForm

        pane = self.pane("data")
        view = pane.view if pane is not None else None
        if view is None:
            self.warn("No data is open", "Columns are chosen with rows in view: open a data file first.")
            return
        if view.is_entry:
            text = f"{view.path.name} is an entry of a registry, which says its columns itself. Change them there."
            self.warn("The columns are not chosen here", text)
            return
        columns, wanted = document.get("data.columns"), document.get("data.format")
        trained = data_paths(document, "train")
        is_named = not trained or view.path.resolve() in (*trained, *data_paths(document, "eval"))
        self.push_screen(
            ColumnsScreen(
                view,
                ColumnForm(
                    wanted if isinstance(wanted, str) else "auto",
                    columns if isinstance(columns, Mapping) else None,
                    "" if is_named else trained[0].name,
                    _objective(document),
                ),
            )
        )


def _objective(document: ConfigDocument) -> Objective:
    """``train.objective``, or its default while that is nothing that can be."""
    written = document.get("train.objective")
    return next((objective for objective in get_args(Objective) if objective == written), "sft")


def _written(document: ConfigDocument, before: Any, value: Any) -> Any:
    """A value as the configuration should write it; a path that is there already stays as it is spelled."""
    if not isinstance(value, Path):
        return value
    if isinstance(before, str):
        base = document.path.parent if document.path is not None else Path.cwd()
        if os.path.normpath(base / os.path.expanduser(before)) == os.path.normpath(value.absolute()):
            return before
    return path_text(document, value)
