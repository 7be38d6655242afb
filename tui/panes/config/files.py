"""Dialogs about configuration files: save, open, compare and import."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import App

from core.config.compare import diff_texts, diff_values, holding_values
from core.config.document import ConfigDocument
from core.config.files import recent_configs
from core.drafts import remove_draft
from core.errors import UserError
from core.path_kind import CODE_SUFFIXES, YAML_SUFFIXES
from core.paths import shown_path, user_path, working_directory
from core.text import one_line
from tui.panes.config.editor import ConfigEditor, Opened, describe, kept_drafts, open_draft
from tui.screens.box import ReportScreen
from tui.screens.choice import Choice, ChoiceDialog
from tui.screens.pick import Discard, Pick, PickScreen
from tui.widgets.forms.ask_bar import AskBar

if TYPE_CHECKING:
    from core.importers.convert import Imported
    from core.runs.catalog.earlier import Origin

_SUFFIXES = (".toml",)
#: Choice of a file that is not in the list.
_ANOTHER = "another file…"
#: Choice of an empty configuration.
_NEW = "a new one"


class FileQuestions:
    """The questions of saving and opening.

    Args:
        editor: The configuration.
        bar: The ask bar.
    """

    def __init__(self, editor: ConfigEditor, bar: AskBar) -> None:
        self._editor = editor
        self._bar = bar

    async def save(self) -> list[str] | Opened | None:
        """Save the file; ask for a path if there is none, and what to do if another program changed the file.

        Returns:
            The options whose paths were rewritten relative to a new file; the file's present content if the user
            chooses that; None if the user cancels.

        Raises:
            UserError: If it cannot be written, or read.
        """
        path = self._editor.document.path
        if path is None:
            return await self.save_as()
        if not self._editor.document.has_changed_on_disk:
            return self._editor.save()
        question = f"{path.name} was changed by another program since it was read."
        answer = await self._bar.ask_key(question, {"o": "overwrite it", "l": "load it, without my changes"})
        if answer == "l":
            return Opened.load(path, f"loading {path.name} from the disk", f"✓ loaded {path.name} as it is now")
        return self._editor.save(overwrite=True) if answer == "o" else None

    async def save_as(self) -> list[str] | None:
        """Ask for another file, save the configuration there, and continue with that file.

        Returns:
            The options whose paths were rewritten relative to it; None if the user cancels.

        Raises:
            UserError: If it cannot be written.
        """
        path = await self._bar.ask_path("save as", self._editor.suggested_name, suffixes=_SUFFIXES)
        if path is None:
            return None
        target = path if path.suffix else path.with_suffix(".toml")
        if target.is_dir():
            raise UserError(f"{target} is a directory.", "Give the file a name.")
        if not target.exists():
            return self._editor.save(target)
        answer = await self._bar.ask_key(f"{target.name} exists already.", {"y": "replace it"})
        return self._editor.save(target, overwrite=True) if answer == "y" else None

    async def open(self) -> Opened | None:
        """Ask for another configuration, and open it: a file, a draft, or a new one; None if the user cancels.

        Raises:
            UserError: If it cannot be read.
        """
        if not await self.may_leave("open another anyway"):
            return None
        known, drafts = self._known(), {draft.id: draft for draft in kept_drafts()}
        is_empty = not self._editor.document.dumps()
        answer: str | None = _ANOTHER
        if known or drafts or not is_empty:
            picks = [Pick(identity, *reversed(describe(draft))) for identity, draft in drafts.items()]
            picks += [Pick(str(path), _about(path), path.name) for path in known]
            picks += [Pick(_ANOTHER, "name it"), *([] if is_empty else [Pick(_NEW, "with every default")])]
            discard = Discard(frozenset(drafts), remove_draft) if drafts else None
            screen = PickScreen("Configurations", picks, is_free=True, discard=discard)
            answer = await self._bar.app.push_screen_wait(screen)
        if answer in drafts:
            return open_draft(drafts[answer])
        if answer == _NEW:
            return Opened(ConfigDocument(), "a new configuration", "✓ a new configuration")
        if answer == _ANOTHER:
            path = await self._bar.ask_path("open", suffixes=_SUFFIXES)
        else:
            path = user_path(answer) if answer else None
        return Opened.load(path) if path is not None else None

    async def may_leave(self, anyway: str) -> bool:
        """True if the configuration may be closed; asks about unsaved edits of a file.

        A configuration without a file is kept as a draft.

        Args:
            anyway: The label of the answer that discards the edits.
        """
        if not self._editor.model.is_edited or self._editor.document.path is None:
            return True
        return await self._bar.ask_key("What is here has not been saved.", {"y": anyway}) == "y"

    async def choose(self, label: str) -> Path | None:
        """Ask for a recently opened configuration or another file; None if the user cancels."""
        known = self._known()
        answer: str | None = _ANOTHER
        if known:
            picks = [*(Pick(str(path), _about(path), path.name) for path in known), Pick(_ANOTHER, "name it")]
            answer = await self._bar.app.push_screen_wait(PickScreen("Configurations", picks))
        if answer == _ANOTHER:
            return await self._bar.ask_path(label, suffixes=_SUFFIXES)
        return Path(answer) if answer else None

    def _known(self) -> list[Path]:
        """The recently opened files, without the present one."""
        present = self._editor.document.path
        here = working_directory() / present if present is not None else None
        return [path for path in recent_configs() if path != here]


def _about(path: Path) -> str:
    """The directory and model of a configuration."""
    try:
        model = ConfigDocument.load(path).get("model.base")
    except UserError:
        model = "cannot be read"
    where = shown_path(path.parent)
    return one_line(f"{where}  {Path(model).name}" if isinstance(model, str) else where, 200)


async def show_difference(
    app: App[object], editor: ConfigEditor, last: Origin | None, questions: FileQuestions
) -> None:
    """Ask for another version of the configuration, and show the difference.

    Args:
        app: The app.
        editor: The editor of the configuration.
        last: The last run of a similar configuration.
        questions: The dialogs that ask for another configuration.

    Raises:
        UserError: If the other version cannot be read.
    """
    from tui.screens.box import DifferenceScreen

    path, preset = editor.document.path, editor.preset
    choices = []
    if path is not None:
        choices.append(Choice("f", "file", "its file", f"{path.name} as it is on the disk"))
    if last is not None:
        choices.append(Choice("l", "run", "the last run", last.run.id))
    if preset is not None:
        choices.append(Choice("p", "preset", "the preset", preset.name))
    choices.append(Choice("o", "other", "another configuration"))
    text = "What is here is compared with"
    answer = await app.push_screen_wait(ChoiceDialog("Compare with", text, *choices, is_harmless=True))
    document, mine = editor.document, holding_values(editor.document)
    if answer == "file" and path is not None:
        before, lines = f"{path.name} on the disk", diff_texts(ConfigDocument.load(path).dumps(), document.dumps())
    elif answer == "run" and last is not None:
        before, lines = f"run {last.run.id}", diff_values(dict(last.values), mine)
    elif answer == "preset" and preset is not None:
        # Only options that the preset sets are compared.
        before, lines = f"preset {preset.name}", diff_values(mine | dict(preset.values), mine)
    elif answer == "other" and (other := await questions.choose("compare with")) is not None:
        before, lines = other.name, diff_values(holding_values(ConfigDocument.load(other)), mine)
    else:
        return
    edited = ", as edited here" if editor.model.is_edited else ""
    app.push_screen(DifferenceScreen(before, f"{path.name}{edited}" if path is not None else "not saved yet", lines))


#: Suffixes of configurations of Axolotl, LLaMA-Factory and Unsloth, whose settings may be in code.
SUFFIXES = (*YAML_SUFFIXES, *CODE_SUFFIXES)


def read_import(path: Path) -> Imported:
    """Import a configuration; blocks, as its module imports are slow.

    Raises:
        UserError: If it belongs to no known tool.
    """
    from core.importers.convert import import_config

    return import_config(path)


def report_screen(path: Path, imported: Imported) -> ReportScreen:
    """The screen with the report of imported and skipped options."""
    from core.importers.convert import render

    def lines(width: int) -> list[str]:
        found = render(imported, width)
        for unknown in imported.unknown:
            guess = f" Did you mean {unknown.guess}?" if unknown.guess else ""
            sentence = f"Line {unknown.line}: {imported.title} has no key {unknown.key}.{guess}"
            found += ["", *textwrap.wrap(one_line(sentence, 300), width)]
        return found

    return ReportScreen(f"Imported from {path.name}", lines)
