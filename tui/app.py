"""The app: it holds the state, answers the messages of the panes and decides how to leave."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.app import InvalidThemeError
from textual.binding import BindingType
from textual.command import Provider
from textual.driver import Driver
from textual.widget import Widget

from core.commands.common import EXIT_ERROR
from core.errors import UserError
from core.hub_uri import is_hub_entry
from core.paths import config_dir
from core.text import one_line
from themes.loader import DEFAULT, load_builtin, load_user, variable_defaults
from tui import messages
from tui.controllers.configuration import FormDesk
from tui.data_paths import data_paths
from tui.draft_keeper import LOOK_SECONDS, ConfigDraft
from tui.driver import TerminalDriver
from tui.glyphs import GLYPH_SETS
from tui.keys import Key, KeyTable, bindings, load_keymap
from tui.main_screen import TILED_SIZE, MainScreen
from tui.mistakes import Mistakes
from tui.panes import pane_spec
from tui.settings import load_settings, resolve_glyphs, save_theme

if TYPE_CHECKING:
    from core.config.document import ConfigDocument


#: Most threads at once: some follow a run or sample the devices for as long as the app is there.
_THREADS = 32


def _key_commands() -> type[Provider]:
    """What the palette offers, imported when it is opened."""
    from tui.palette import KeyCommands

    return KeyCommands


class LeavingExecutor(ThreadPoolExecutor):
    """Threads that the end of the app does not wait for: a file may be long, and a template without end."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Begin nothing more."""
        super().shutdown(wait=False, cancel_futures=True)


class LocaltuneApp(FormDesk):
    """localtune-tui.

    Args:
        config_path: A configuration to open.
        run: A run to open: an id, a part of one, a path or ``latest``.
        demo: Whether to start the sample run at once.
    """

    TITLE = "localtune-tui"
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("app")]
    COMMANDS: ClassVar[set[Callable[[], type[Provider]]]] = {_key_commands}  # type: ignore[assignment]

    def __init__(self, config_path: Path | None = None, run: str | None = None, demo: bool = False) -> None:
        self.mistakes = Mistakes()
        super().__init__()
        self._config_path, self._run_name, self._demo = config_path, run, demo
        self._is_arriving = run is None and not demo
        self._settings, self._complaints = load_settings(config_dir() / "settings.toml")
        self._complaints = [f"settings.toml: {problem}" for problem in self._complaints]
        self.glyphs = GLYPH_SETS[resolve_glyphs(self._settings.glyphs)]
        keymap = load_keymap(config_dir() / "keymap.toml")
        self._complaints += [f"keymap.toml: {problem}" for problem in keymap.problems]
        self.keys = KeyTable(keymap.overrides)
        self.set_keymap(keymap.overrides)
        if not self._settings.animations:
            self.animation_level = "none"
        self._load_themes()

    def _load_themes(self) -> None:
        """Register our themes and the user's, and take the chosen one."""
        for theme in load_builtin():
            self.register_theme(theme)
        loaded = load_user(config_dir() / "themes")
        for theme in loaded.themes:
            self.register_theme(theme)
        self._complaints += [f"theme {failure}" for failure in loaded.failures]
        wanted = os.environ.get("TEXTUAL_THEME") or self._settings.theme or DEFAULT
        try:
            self.theme = wanted
        except InvalidThemeError:
            self._complaints.append(f"there is no theme {one_line(wanted, 40)}")
            self.theme = DEFAULT

    def get_driver_class(self) -> type[Driver]:
        """The terminal."""
        return TerminalDriver

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """The app's own colors, for themes that do not set them."""
        return variable_defaults(self.current_theme.dark)

    def get_default_screen(self) -> MainScreen:
        """The panes."""
        return MainScreen()

    # Start and end.

    def on_mount(self) -> None:
        """Take signals as a wish to leave, so that the terminal is given back as it was."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(LeavingExecutor(max_workers=_THREADS, thread_name_prefix="app"))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            # Only the main thread can take signals; elsewhere (in tests) there are none to take.
            with suppress(RuntimeError, ValueError):
                loop.add_signal_handler(number, self.leave)
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        self.set_interval(LOOK_SECONDS, self.drafts.look)

    async def on_unmount(self) -> None:
        """End the threads."""
        self.bridge.close()

    @on(messages.TerminalGone)
    def _terminal_gone(self) -> None:
        self.leave()

    def _handle_exception(self, error: Exception) -> None:
        """End by a mistake: what is not saved is kept, the details go to a file, and no traceback to the terminal."""
        # The first one is raised again where a test has driven the app.
        if self._exception is None:
            self._exception = error
            self._exception_event.set()
        if not self._exit:
            # What is still under way while the app leaves may miss what has gone already; it leaves all the same.
            self._return_code = EXIT_ERROR
            self.end_by_mistake(error)
        self._close_messages_no_wait()

    def panic(self, *renderables: Any) -> None:
        """What Textual calls for a mistake that it has words for itself."""
        error = sys.exc_info()[1]
        self._handle_exception(error if isinstance(error, Exception) else RuntimeError(*map(str, renderables)))

    def end_by_mistake(self, error: BaseException) -> None:
        """Report a mistake, and keep what is not saved."""
        self.mistakes.record(error, self.size)
        # The mistake may be in what is kept.
        with suppress(Exception):
            self.drafts.look()

    def last_words(self) -> str:
        """What is told of a mistake after the app; empty where there was none."""
        view = self.state.live_run
        return self.mistakes.sentence(self.drafts.kept, view.run.id if view is not None else "")

    @on(messages.FirstPaint)
    async def _first_paint(self) -> None:
        """What is slow to import, now that there is something to look at."""
        self.show_header()
        self.bridge.sample_devices()
        if self._demo:
            self.bridge.start_sample()
        elif self._run_name is not None:
            self.bridge.open_run(self._run_name)
        else:
            self.bridge.find_run()
        await self.main.load_panes()
        self._warm_sandbox()
        if self.state.view is not None:
            self._set_chat_target(self.state.view)
        self.bridge.load_config(self._config_path)
        if self._complaints:
            text = "\n".join(self._complaints)
            self.notify(text, title="Left out of your settings", severity="warning", timeout=12, markup=False)

    @work(thread=True, group="sandbox")
    def _warm_sandbox(self) -> None:
        """Have the process ready that the first row as tokens and the first preview of a template need."""
        from core.template.sandboxed import warm

        with suppress(UserError):  # Whoever needs it says why there is none.
            warm()

    def land_without_run(self) -> None:
        """With a configuration to open, begin there, unless the user has gone somewhere meanwhile."""
        if self._config_path is not None and self._is_arriving and self.main.current == "train":
            self.main.show_pane("config")
        self._is_arriving = False

    def _theme_changed(self, _: object) -> None:
        self.show_header()

    @on(messages.PaneRequested)
    def _pane_requested(self, message: messages.PaneRequested) -> None:
        self.main.show_pane(message.pane)

    # The configuration.

    @on(messages.ConfigLoaded)
    def _config_loaded(self, message: messages.ConfigLoaded) -> None:
        document = message.document
        self.state.document, self.state.saved_text = document, document.dumps()
        if (pane := self.pane("config")) is not None:
            pane.load(document)
            self._offer_draft(document)
        self._show_data(document)
        self.show_header()

    def _offer_draft(self, document: ConfigDocument) -> None:
        """Bring back edits of this configuration that an earlier app has left, or ask where its file is another one."""
        found = self.drafts.find_config(document)
        if found is None:
            return
        if not found.is_stale:
            self._take_up_draft(document, found)
            return
        from tui.screens.dialogs import DISCARD, RESTORE, stale_draft_dialog

        def answered(answer: str | None) -> None:
            if answer == RESTORE and self.state.document is document:
                self._take_up_draft(document, found)
            elif answer == DISCARD:
                found.discard()

        self.push_screen(stale_draft_dialog(self.state.file_name or "The configuration", found.time), answered)

    def _take_up_draft(self, document: ConfigDocument, found: ConfigDraft) -> None:
        self.drafts.take_up_config(document, found)
        # Behind the building of the form, which loading it has asked for.
        pane = self.pane("config")
        pane.call_later(pane.take_up, found.text, found.unread, found.time)
        save, undo = self.keys["config.save"].display, self.keys["config.undo"].display
        what = f"Edits of {found.time} that were not saved are back in the Config pane"
        text = f"{what}: {save} saves them, {undo} undoes them."
        self.notify(text, title="Kept for you", timeout=12, markup=False)

    @on(messages.PasteRefused)
    def _paste_refused(self, message: messages.PasteRefused) -> None:
        self.warn("Not pasted", f"It is longer than {message.limit >> 20} MiB. Put it in a file, and name that.")

    @on(messages.ConfigEdited)
    def _config_edited(self, message: messages.ConfigEdited) -> None:
        self.state.document = message.document
        if message.saved is not None:
            self.state.saved_text = message.saved
        if message.option in ("", "data.train"):
            self._show_data(message.document)
        else:
            self.configure_data(message.document)
        self.show_header()

    @on(messages.ConfigSaved)
    def _config_saved(self, message: messages.ConfigSaved) -> None:
        self.state.document, self.state.saved_text = message.document, message.document.dumps()
        self.show_header()

    def _show_data(self, document: Any) -> None:
        """Let the data pane show what the configuration trains on."""
        if (pane := self.pane("data")) is not None:
            pane.follow(document)

    @on(messages.DatasetChosen)
    def _dataset_chosen(self, message: messages.DatasetChosen) -> None:
        document = self.state.document
        if document is None:
            return
        other = "eval" if message.use == "train" else "train"
        if (message.path if is_hub_entry(message.path) else message.path.resolve()) in data_paths(document, other):
            name = one_line(message.path.name, 60)
            if message.use == "eval":
                text = f"{name} is trained on; rows that are trained on cannot be held out. Choose another file."
            else:
                text = f"{name} is held out of training; it cannot be trained on too. Choose another file."
            self.warn("Not both", text)
            return
        verb = "trained on" if message.use == "train" else "held out of training"
        self.set_options({f"data.{message.use}": message.path}, f"{message.path.name} will be {verb}.")

    # Keys.

    @on(messages.PaneShown)
    def _pane_shown(self, message: messages.PaneShown) -> None:
        if message.pane == "runs":
            self.bridge.list_runs(message.shown)
        self.show_header()

    def action_show_pane(self, name: str) -> None:
        """Show a pane."""
        self.main.press_number(name)

    def action_tile(self) -> None:
        """Put the panes side by side."""
        self.main.tile()
        if not self.main.can_tile:
            self.notify(
                f"Panes stand side by side from {TILED_SIZE[0]}×{TILED_SIZE[1]} on; "
                f"this terminal is {self.main.size.width}×{self.main.size.height}.",
                timeout=4,
                markup=False,
            )

    def action_help_quit(self) -> None:
        """What ctrl+c says: it ends other programs, and here it must not end anything by accident."""
        live = self.state.live_run is not None
        text = f"{self.keys['app.quit'].display} leaves the app." + (" Training goes on without it." if live else "")
        if not any(note.message == text for note in self._notifications):
            self.notify(text, timeout=4, markup=False)

    def action_save_picture(self) -> None:
        """Write what is on the screen into the working directory, or home where that cannot be written."""
        name = f"localtune-{datetime.now().strftime('%Y%m%d-%H%M%S')}.svg"
        picture = self.export_screenshot(title="localtune-tui")
        for directory in (Path.cwd(), Path.home()):
            path = directory / name
            try:
                path.write_text(picture, encoding="utf-8")
            except OSError as error:
                reason = error.strerror or str(error)
                continue
            self.notify(f"The picture is in {one_line(str(path), 200)}", timeout=8, markup=False)
            return
        self.warn("The picture is not saved", f"{path.parent} cannot be written to: {reason}.")

    def action_help(self) -> None:
        """Explain the pane that has the keys."""
        from tui.screens.help import HelpScreen

        if len(self.screen_stack) > 1:
            return
        spec = pane_spec(self.main.current)
        pane = self.pane(spec.id)
        about = str(getattr(pane, "HELP", "") or "")
        self.push_screen(HelpScreen(spec.title, about, self.keys, spec.id))

    def can_run(self, key: Key) -> bool:
        """Whether what a key does makes sense now; the palette leaves out what does not."""
        if key.scope == "app":
            return True
        pane = self.pane(key.scope)
        return isinstance(pane, Widget) and pane.check_action(key.action.partition("(")[0], ()) is not False

    async def run_key(self, key: Key) -> None:
        """Do what a key does, in the pane it belongs to."""
        if key.scope == "app":
            await self.run_action(key.action)
            return
        self.main.show_pane(key.scope, zoom=self.main.zoomed)
        if isinstance(pane := self.pane(key.scope), Widget):
            await pane.run_action(key.action)

    def search_themes(self) -> None:
        """Choose a theme, seeing each one while it is highlighted."""
        from tui.screens.theme_picker import ThemePicker

        def chosen(name: str | None) -> None:
            if name:
                self._remember_theme(name)

        self.push_screen(ThemePicker(sorted(self.available_themes), self.theme), chosen)

    def _remember_theme(self, name: str) -> None:
        try:
            save_theme(config_dir() / "settings.toml", name)
        except (OSError, UserError) as error:
            self.warn("The theme is not remembered", str(error))
