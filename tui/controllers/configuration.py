"""Controller of the configuration: loading, edits, drafts, and options chosen in other panes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from core.config.choices import Objective
from core.errors import UserError
from core.paths import working_directory
from core.text import one_line
from tui.controllers.presets import AdviceFollower, PresetChooser
from tui.draft_keeper import ConfigDraft, DraftKeeper
from tui.files import data_paths, is_among, path_text
from tui.main_screen import Desktop

if TYPE_CHECKING:
    from core.analysis.result import Analysis
    from core.config.document import ConfigDocument
    from core.runs.catalog.earlier import Origin
    from core.runs.record.store import Run
    from tui.panes.config.editor import Opened


class Configuration:
    """Controller of the configuration, which updates the state and the panes.

    Args:
        desktop: The panes, dialogs and notices, and the state of the app.
        drafts: The drafts of unsaved edits.
        changed: Called after an edit, and after a preset has been chosen.
    """

    def __init__(self, desktop: Desktop, drafts: DraftKeeper, changed: Callable[[], None]) -> None:
        self._desktop, self._state, self._keys = desktop, desktop.state, desktop.keys
        self._drafts, self._changed = drafts, changed
        self.presets = PresetChooser(desktop, changed)
        """The chooser of a preset for a new configuration."""
        self._advice = AdviceFollower(desktop)

    def loaded(self, document: ConfigDocument) -> None:
        """Show a configuration that was read or newly created, and offer a draft of it left by an earlier app."""
        self._hold(document, document.dumps())
        self._state.is_opening = False
        self.presets.begin(document if document.path is None and not document.dumps() else None)
        if (form := self._desktop.panes.config) is not None:
            form.load(document)
            self._offer_draft(document)
        self._show_data(document)
        self._desktop.show_header()

    def reopened(self, opened: Opened, data: Path | None = None) -> None:
        """Show the initial configuration, which the user did not name.

        Args:
            opened: The configuration.
            data: The data named by the user; a new configuration begins with it if this one does not use it.
        """
        document = opened.document
        if data is not None and self._is_foreign(document, data):
            saved_text = document.saved_text if document.path is not None else ""
            self._take_up(opened, document.dumps() if opened.is_begun else saved_text)
            self._train_on(data)
            return
        if document.path is not None or not document.dumps():
            self.loaded(document)
        else:
            self._take_up(opened, document.dumps() if opened.is_begun else "")
            self._show_data(document)
            self._desktop.show_header()
        if data is not None and not data_paths(document, "train"):
            self._train_on(data)

    def _take_up(self, opened: Opened, saved_text: str) -> None:
        """Show a configuration in the form, and set it in the state."""
        self._hold(opened.document, saved_text, opened.origin, draft=opened.draft)
        self._state.is_opening = False
        if (form := self._desktop.panes.config) is not None:
            form.open(opened)

    def edit_run(self, run: Run) -> None:
        """Open a copy of a run's configuration; the present configuration is kept."""
        from tui.panes.config.editor import open_run

        self._open_over(partial(open_run, run))

    def follow_run(self, run: Run) -> None:
        """Open the configuration of a started run, unless the present one has training data; edits become a draft."""
        from tui.panes.config.editor import open_run

        document = self._state.document
        if document is None or not data_paths(document, "train"):
            self.reopened(open_run(run))

    def train_further(
        self, run: Run, then: Callable[[Callable[[], None]], None], *, on_corrections: bool = False
    ) -> None:
        """Open a configuration that trains a finished run further, and go on; the present configuration is kept.

        Args:
            run: The run.
            then: Called afterwards, with a function that takes it back: all is as before then.
            on_corrections: Train it on the corrections of its chat, among some of its rows.
        """
        from tui.panes.config.editor import open_further

        main = self._desktop.main
        back = partial(self._take_back, main.current, main.zoomed)
        self._open_over(partial(open_further, run, on_corrections=on_corrections), partial(then, back))

    def _take_back(self, pane: str, zoomed: bool) -> None:
        """Go back to the previous configuration without a draft of the present one, and to a pane."""
        state, form = self._state, self._desktop.panes.config
        if form is None or state.document is None:
            return
        # Text that is saved has no draft.
        state.saved_text = state.document.dumps()
        self._drafts.look()
        form.take_back()
        self._desktop.show_pane(pane, zoom=zoomed)

    def _open_over(self, find: Callable[[], Opened], then: Callable[[], None] | None = None) -> None:
        form = self._desktop.panes.config
        if form is None:
            return
        try:
            opened = find()
        except UserError as error:
            self._desktop.fail("The configuration cannot be opened", error)
            return
        self._desktop.show_pane("config", zoom=self._desktop.main.zoomed)
        # After the pane has the focus, which its dialog then takes.
        self._desktop.call_later(form.open_over, opened, then)

    def edited(
        self,
        document: ConfigDocument,
        option: str = "",
        *,
        saved: str | None = None,
        origin: Origin | None = None,
        draft: str = "",
    ) -> None:
        """Update the app after an edit in the form; see :class:`tui.shell.ConfigurationRequests`."""
        if saved is not None:
            self._hold(document, saved, origin, draft=draft)
        else:
            self._hold(document, self._state.saved_text, self._state.origin)
        if option in ("", "data.train"):
            self._show_data(document)
        else:
            self._configure_data(document)
        self._follow_base(document)
        self._desktop.show_header()
        self._changed()

    def _follow_base(self, document: ConfigDocument) -> None:
        """Update preset and advised values after an edit; a new configuration gets both with its preset."""
        if self.presets.follow(document):
            self._advice.hold(document)
        else:
            self._advice.follow(document)

    def saved(self, document: ConfigDocument) -> None:
        """Note that the configuration was saved."""
        self._hold(document, document.dumps())
        self._desktop.show_header()

    def _hold(
        self, document: ConfigDocument, saved_text: str, origin: Origin | None = None, *, draft: str = ""
    ) -> None:
        """Set the configuration in the state; the drafts are updated at once if it is another one.

        Args:
            document: The configuration.
            saved_text: The text that needs no saving.
            origin: The run that it was copied from.
            draft: The id of its draft.
        """
        state = self._state
        is_other = document is not state.document
        if is_other:
            self._drafts.look()
        state.document, state.saved_text, state.origin = document, saved_text, origin
        if draft:
            self._drafts.adopt(document, draft)
        elif is_other:
            self._drafts.look()
        if is_other:
            self._advice.hold(document)
            if document.path is None and not document.dumps():
                self.presets.begin(document)

    def _show_data(self, document: ConfigDocument) -> None:
        """Show the training data of the configuration in the Data pane, and the way to start a run."""
        form = self._desktop.panes.config
        self._state.former = form.editor.former_name if form is not None else ""
        self._explain_start()
        if (pane := self._desktop.panes.data) is not None:
            pane.follow(document)

    def _configure_data(self, document: ConfigDocument) -> None:
        """Apply the configuration's data plan in the Data pane."""
        if (pane := self._desktop.panes.data) is not None:
            pane.configure(document)

    def _explain_start(self) -> None:
        if (pane := self._desktop.panes.train) is not None:
            pane.explain_empty()

    # Drafts.

    def _offer_draft(self, document: ConfigDocument) -> None:
        """Restore a draft left by an earlier app; ask first if the file has changed since."""
        found = self._drafts.find_config(document)
        if found is None:
            return
        if not found.is_stale:
            self._take_up_draft(document, found)
            return
        from tui.screens.dialogs import DISCARD, RESTORE, stale_draft_dialog

        def answered(answer: str | None) -> None:
            if answer == RESTORE and self._state.document is document:
                self._take_up_draft(document, found)
            elif answer == DISCARD:
                found.discard()

        name = self._state.file_name or "The configuration"
        self._desktop.open(stale_draft_dialog(name, found.time), answered)

    def _take_up_draft(self, document: ConfigDocument, found: ConfigDraft) -> None:
        self._drafts.take_up_config(document, found)
        # The draft has values already, so no preset is chosen for it.
        self.presets.begin(None)
        # After the form has been built, which load() has requested.
        if (form := self._desktop.panes.config) is not None:
            form.call_later(form.take_up, found.text, found.unread, found.time)
        save, undo = self._keys["config.save"].display, self._keys["config.undo"].display
        what = f"Edits of {found.time} that were not saved are back in the Config pane"
        self._desktop.tell(f"{what}: {save} saves them, {undo} undoes them.", "Kept for you", seconds=12)

    # Options chosen in other panes.

    def open_data(self, path: Path) -> None:
        """Show the rows of a file."""
        self._desktop.show_pane("data")
        if (pane := self._desktop.panes.data) is not None:
            pane.show(path)

    def analyzed(self, path: Path, analysis: Analysis | None) -> None:
        """Plan memory and time with the rows of a file."""
        if (form := self._desktop.panes.config) is not None:
            form.take_analysis(path, analysis)

    def use_dataset(self, path: Path, use: Literal["train", "add", "eval"] = "train") -> None:
        """Train on a file, add it or hold it out; refused if it is already used the other way."""
        document = self._state.document
        if document is None:
            return
        name, trained = one_line(path.name, 60), data_paths(document, "train")
        # What was said before about the data is out of date now.
        self._desktop.clear_notices()
        if use != "eval" and is_among(data_paths(document, "eval"), path):
            text = f"{name} is held out of training; it cannot be trained on too. Choose another file."
            self._desktop.warn("Not both", text)
        elif use != "eval" and is_among(trained, path):
            self._desktop.tell(one_line(f"{name} is used for training; {self._next_step(path)}", 200))
        elif use == "train":
            self._train_on(path)
        elif use == "add":
            self._add(document, path)
        elif is_among(trained, path):
            text = f"{name} is trained on; rows that are trained on cannot be held out. Choose another file."
            self._desktop.warn("Not both", text)
        else:
            # Held-out files replace a held-out share.
            share = {"data.eval_share": None} if document.get("data.eval_share") is not None else {}
            self.set_options({"data.eval": path, **share}, f"{name} is held out of training.")

    def _add(self, document: ConfigDocument, path: Path) -> None:
        """Add a file to the training files."""
        before = document.get("data.train")
        entries = [entry for entry in (before if isinstance(before, list) else [before]) if entry]
        if not entries:
            self._train_on(path)
            return
        text = f"{one_line(path.name, 60)} is trained on too, with the options of {self._state.config_name}."
        self.set_options({"data.train": [*entries, path_text(document, path)]}, text)

    def _train_on(self, path: Path, values: Mapping[str, Any] | None = None, notice: str = "") -> None:
        """Train on a file: in the present configuration if that has no data yet, else in a new one.

        Args:
            path: The file.
            values: Options chosen for it.
            notice: The first sentence of the notice.
        """
        document = self._state.document
        name, said = one_line(path.name, 60), f"{notice} " if notice else ""
        if document is None or not data_paths(document, "train"):
            text = f"{said}{name} is used for training; {self._next_step(path, is_mended=bool(values))}"
            self.set_options({"data.train": path, **(values or {})}, text)
            return
        self._begin(path, values or {})
        back = ""
        if former := self._state.former:
            back = f" {self._keys['data.former'].display} in Data brings {one_line(former, 40)} back."
        step = self._next_step(path, is_mended=bool(values))
        text = f"{said}{name} is used for training, in a new configuration; {step}{back}"
        self._desktop.tell(one_line(text, 300), seconds=8)

    def _next_step(self, path: Path, *, is_mended: bool = False) -> str:
        """The next step with a file, for a notice; ``is_mended`` if its rows are now read in another way."""
        pane = self._desktop.panes.data
        rows = pane.seen(path) if pane is not None else None
        if rows is not None and rows.refusal and not is_mended:
            return "before a run can read it, mend what the Data pane says."
        return f"{self._keys['app.start'].display} starts."

    def _begin(self, path: Path, values: Mapping[str, Any]) -> None:
        """Start a new configuration that trains on a file; the present one can be brought back."""
        from core.config.document import ConfigDocument
        from tui.panes.config.editor import Opened

        document = ConfigDocument()
        for name, value in {"data.train": path, **values}.items():
            document.set(name, _written(document, None, value))
        # Unsaved edits of a file are kept here without a question.
        self._drafts.set_aside()
        name = one_line(path.name, 60)
        if (form := self._desktop.panes.config) is not None:
            form.open(Opened(document, f"a new configuration for {name}", f"✓ a new configuration for {name}"))
        self._hold(document, "")
        self.presets.begin(document)
        self._show_data(document)
        self._follow_base(document)
        self._desktop.show_header()

    def bring_back(self) -> None:
        """Go back to the previous configuration; the present one is kept."""
        state, form = self._state, self._desktop.panes.config
        if form is None or state.document is None or not state.former:
            self._desktop.tell("There is no earlier configuration.")
            return
        former, left, has_file = state.former, state.config_name, state.document.path is not None
        self._drafts.set_aside()
        form.bring_back()
        kept = ""
        if left and not has_file:
            pane, opens = self._keys["app.config"].display, self._keys["config.open"].display
            kept = f" {one_line(left, 40)} is kept: {opens} in Config ({pane}) lists it."
        self._desktop.tell(one_line(f"{former} is back as it was.{kept}", 200), seconds=6)

    def choose_options(self, values: Mapping[str, Any], notice: str = "", path: Path | None = None) -> None:
        """Set options chosen in a screen; for a file that the configuration does not use, start a new one."""
        document = self._state.document
        if document is None or path is None or not self._is_foreign(document, path):
            self.set_options(values, notice)
        elif any(value is not None for value in values.values()):
            self._train_on(path, values, notice)
        else:
            self._desktop.tell(notice)

    @staticmethod
    def _is_foreign(document: ConfigDocument, path: Path) -> bool:
        """True if a configuration has training data, but does not use this file."""
        trained = data_paths(document, "train")
        return bool(trained) and not is_among([*trained, *data_paths(document, "eval")], path)

    def set_options(self, values: Mapping[str, Any], notice: str = "") -> None:
        """Set all options or, on an error, none, and update the panes.

        Args:
            values: ``section.key`` to value; None for the default, a path as a :class:`~pathlib.Path`.
            notice: The notice shown afterwards.
        """
        document = self._state.document
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
            self._desktop.fail("The configuration is not changed", error)
            return
        self._configure_data(document)
        self._explain_start()
        if (pane := self._desktop.panes.config) is not None:
            pane.load(document)
        if notice:
            self._desktop.tell(one_line(notice, 200))
        self._follow_base(document)
        self._desktop.show_header()

    def open_form(self, form: Literal["template", "columns"]) -> None:
        """Open the screen for choosing the template or the columns."""
        document = self._state.document
        if document is None or self._desktop.is_covered:
            return
        if form == "template":
            self._open_template(document)
        else:
            self._open_columns(document)

    def _open_template(self, document: ConfigDocument) -> None:
        from tui.datasets.plan import plan_tokens
        from tui.screens.template.template import TemplateScreen

        plan, pane = plan_tokens(document), self._desktop.panes.data
        view = pane.view if pane is not None else None
        index = pane.index if pane is not None and view is not None else 0
        self._desktop.open(TemplateScreen(plan, view, index))

    def _open_columns(self, document: ConfigDocument) -> None:
        from tui.screens.columns.columns import ColumnsScreen

        pane = self._desktop.panes.data
        view = pane.view if pane is not None else None
        if view is None:
            self._desktop.warn("No data is open", "Open a data file first; columns are chosen beside its rows.")
            return
        if view.is_entry:
            text = f"{view.path.name} is an entry of a registry, which says its columns itself. Change them there."
            self._desktop.warn("The columns are not chosen here", text)
            return
        if self._is_foreign(document, view.path):
            self._desktop.open(ColumnsScreen(view))
            return
        columns, wanted = document.get("data.columns"), document.get("data.format")
        screen = ColumnsScreen(
            view,
            wanted if isinstance(wanted, str) else "auto",
            columns if isinstance(columns, Mapping) else None,
            _objective(document),
        )
        self._desktop.open(screen)


def _objective(document: ConfigDocument) -> Objective:
    """``train.objective``, or ``sft`` while the value is invalid."""
    written = document.get("train.objective")
    return next((objective for objective in get_args(Objective) if objective == written), "sft")


def _written(document: ConfigDocument, before: Any, value: Any) -> Any:
    """A value as written in the configuration; an unchanged path keeps its spelling."""
    if not isinstance(value, Path):
        return value
    if isinstance(before, str):
        base = document.path.parent if document.path is not None else working_directory()
        if os.path.normpath(base / os.path.expanduser(before)) == os.path.normpath(value.absolute()):
            return before
    return path_text(document, value)
