"""Several configurations: copied, opened again, and compared with one another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from textual import on

from core.config.compare import DiffLine, diff_texts, diff_values, holding_values
from core.config.document import ConfigDocument
from core.config.recent import recent_configs
from core.errors import UserError
from core.paths import shown_path
from core.text import one_line
from tui.messages import ConfigEdited, ConfigLoaded
from tui.panes.config.files import free_name, rebase
from tui.panes.config.presets import ConfigPresets
from tui.screens.choice import Choice, ChoiceDialog
from tui.widgets.forms.ask_bar import AskBar

_SUFFIXES = (".toml",)
#: What stands for a file that is not in the list.
_ANOTHER = "another file…"


class ConfigVariants(ConfigPresets):
    """A pane that knows more than one configuration."""

    # Copying and opening.

    def action_duplicate(self) -> None:
        """Go on in a copy that is not saved yet; the file stays as it is."""
        self.commit_open()
        path, base = self.document.path, self.model.base
        document = ConfigDocument(self.document.dumps())
        rebase(document, base, Path.cwd())
        self._suggested = free_name(path) if path is not None else None
        name = path.name if path is not None else "what is here"
        save = self.keys["config.save"].display
        self.load(document, f"a copy of {name}", f"✓ a copy of {name}; {save} asks for its file")
        self.post_message(ConfigEdited(document, saved=""))

    def action_open(self) -> None:
        """Open another configuration; what has not been saved is not given up without asking."""
        self.commit_open()
        if self.model.is_edited:
            self.ask_bar.ask_key("open-over", "What is here has not been saved.", {"y": "open another all the same"})
        else:
            self._pick(self._open_picked)

    def _pick(self, then: Callable[[str | None], None]) -> None:
        """Choose one of the configurations that were open last."""
        from tui.screens.pick import Pick, PickScreen

        here = self.document.path.absolute() if self.document.path is not None else None
        known = [path for path in recent_configs() if path != here]
        if not known:
            then(_ANOTHER)
            return
        picks = [Pick(str(path), _about(path), path.name) for path in known]
        self.app.push_screen(PickScreen("Configurations", [*picks, Pick(_ANOTHER, "name it")]), then)

    def _open_picked(self, value: str | None) -> None:
        if value == _ANOTHER:
            self.ask_bar.ask_path("open", "open", suffixes=_SUFFIXES)
        elif value:
            self._open(Path(value))

    def _open(self, path: Path) -> None:
        try:
            document = ConfigDocument.load(path)
        except UserError as error:
            self.say(f"✗ {error}")
            return
        self.load(document, f"opening {path.name}")
        self.post_message(ConfigLoaded(document))

    # Comparing.

    def action_compare(self) -> None:
        """Choose what to compare with."""
        self.commit_open()
        path, last, preset = self.document.path, self.last_run, self.preset
        choices = []
        if path is not None:
            choices.append(Choice("f", "file", "its file", f"{path.name} as it is on the disk"))
        if last is not None:
            choices.append(Choice("l", "run", "the last run", last.run.id))
        if preset is not None:
            choices.append(Choice("p", "preset", "the preset", preset.name))
        choices.append(Choice("o", "other", "another configuration"))
        dialog = ChoiceDialog("Compare with", "What is here is compared with", choices, is_harmless=True)
        self.app.push_screen(dialog, self._compare)

    def _compare(self, answer: str | None) -> None:
        if answer == "file" and (path := self.document.path) is not None:
            self._compare_file(path)
        elif answer == "run" and (last := self.last_run) is not None:
            self._show_values(f"run {last.run.id}", dict(last.values))
        elif answer == "preset" and (preset := self.preset) is not None:
            # What a preset says nothing about is no difference.
            mine = holding_values(self.document)
            self._show_values(f"preset {preset.name}", mine | dict(preset.values))
        elif answer == "other":
            self._pick(self._other_picked)

    def _compare_file(self, path: Path) -> None:
        try:
            saved = ConfigDocument.load(path).dumps()
        except UserError as error:
            self.say(f"✗ {error}")
            return
        self._show(f"{path.name} on the disk", diff_texts(saved, self.document.dumps()))

    def _other_picked(self, value: str | None) -> None:
        if value == _ANOTHER:
            self.ask_bar.ask_path("compare", "compare with", suffixes=_SUFFIXES)
        elif value:
            self._compare_other(Path(value))

    def _compare_other(self, path: Path) -> None:
        try:
            other = ConfigDocument.load(path)
        except UserError as error:
            self.say(f"✗ {error}")
            return
        self._show_values(path.name, holding_values(other))

    def _show_values(self, name: str, values: dict[str, object]) -> None:
        self._show(name, diff_values(values, holding_values(self.document)))

    def _show(self, before: str, lines: list[DiffLine]) -> None:
        from tui.screens.difference import DifferenceScreen

        path = self.document.path
        after = path.name if path is not None else "not saved yet"
        edited = ", as edited here" if self.model.is_edited and path is not None else ""
        self.app.push_screen(DifferenceScreen(before, f"{after}{edited}", lines))

    # Answers.

    @on(AskBar.Submitted)
    def _path_named(self, message: AskBar.Submitted) -> None:
        if message.path is not None and message.purpose == "open":
            self._open(message.path)
        elif message.path is not None and message.purpose == "compare":
            self._compare_other(message.path)

    @on(AskBar.Chosen)
    def _open_over(self, message: AskBar.Chosen) -> None:
        if message.purpose == "open-over":
            self._pick(self._open_picked)


def _about(path: Path) -> str:
    """Where a configuration is, and the model in it."""
    try:
        model = ConfigDocument.load(path).get("model.base")
    except UserError:
        model = "cannot be read"
    where = shown_path(path.parent)
    return one_line(f"{where}  {Path(model).name}" if isinstance(model, str) else where, 200)
