"""The app: holds the state, handles the messages of the panes and decides how to quit."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import App, InvalidThemeError
from textual.binding import BindingType
from textual.command import Provider
from textual.driver import Driver
from textual.message import Message

from core.commands.common import EXIT_ERROR
from core.errors import UserError
from core.paths import config_dir
from core.text import one_line
from themes.loader import DEFAULT, load_builtin, load_user, variable_defaults
from tui import messages
from tui.bridge import Bridge
from tui.controllers.configuration import Configuration
from tui.controllers.desktop import Desktop
from tui.controllers.leaving import Leaving
from tui.controllers.returning import Returning
from tui.controllers.run_control import RunControl
from tui.controllers.runs import Runs
from tui.draft_keeper import LOOK_SECONDS, DraftKeeper
from tui.driver import TerminalDriver
from tui.glyphs import GLYPH_SETS
from tui.keys import Key, KeyTable, bindings, load_keymap
from tui.main_screen import TILED_SIZE, MainScreen
from tui.mistakes import Mistakes
from tui.panes import pane_spec
from tui.settings import load_settings, resolve_glyphs, save_theme
from tui.state import AppState
from tui.widgets.lists.run_list import RunList

#: Thread limit: some threads follow a run or sample the devices for as long as the app runs.
_THREADS = 32


def _key_commands() -> type[Provider]:
    """The provider of the command palette, imported when the palette is opened."""
    from tui.palette import KeyCommands

    return KeyCommands


class LeavingExecutor(ThreadPoolExecutor):
    """A thread pool that the end of the app does not wait for: a file may be long, and a template may never end."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Cancel pending work and accept no more; running threads are not waited for."""
        super().shutdown(wait=False, cancel_futures=True)


class LocaltuneApp(App[str]):
    """The Textual app of localtune-tui.

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
        self.state = AppState(is_opening=True)
        self.clock: Callable[[], float] = time.time
        """Clock: the present, in Unix seconds."""
        self.bridge = Bridge(self)
        self.desktop = Desktop(self, self.state)
        remembers = self._settings.remember
        self.drafts = DraftKeeper(self.state, self.desktop.panes, remembers=remembers)
        self.configuration = Configuration(self.desktop, self.state, self.drafts, self.keys)
        self.returning = Returning(
            self.desktop, self.state, self.drafts, self.configuration, lambda: self.clock(), remembers=remembers
        )
        self.leaving = Leaving(self.desktop, self.state, self.bridge, self.drafts, self.returning)
        self.runs = Runs(self.desktop, self.state, self.bridge, self.drafts, lambda: self.clock())
        self.run_control = RunControl(self.desktop, self.state, self.bridge, self.leaving)

    @property
    def main(self) -> MainScreen:
        """The main screen, which has the panes."""
        return self.desktop.main

    def _load_themes(self) -> None:
        """Register our themes and the user's, and activate the chosen one."""
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
        """The driver class for the terminal."""
        return TerminalDriver

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Default color variables, for themes that do not set them."""
        return variable_defaults(self.current_theme.dark)

    def get_default_screen(self) -> MainScreen:
        """The main screen with its panes."""
        if self._is_told:
            return MainScreen()
        return MainScreen(self.returning.pane or "train", zoomed=self.returning.is_zoomed)

    @property
    def _is_told(self) -> bool:
        """Whether the command line says what to begin with."""
        return self._config_path is not None or self._run_name is not None or self._demo

    # Start and end.

    def on_mount(self) -> None:
        """Handle signals as a request to quit, so that the terminal is restored."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(LeavingExecutor(max_workers=_THREADS, thread_name_prefix="app"))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            # Only the main thread can handle signals; elsewhere (in tests) there are none to handle.
            with suppress(RuntimeError, ValueError):
                loop.add_signal_handler(number, self.leaving.leave)
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        self.set_interval(LOOK_SECONDS, self._keep_drafts)

    def _keep_drafts(self) -> None:
        if self.is_running:  # while the app shuts down, the panes are removed piece by piece
            self.drafts.look()
            self.returning.look()

    async def _on_message(self, message: Message) -> None:
        # Results of threads that come while the app shuts down have no widgets left to go to.
        if self.is_running or type(message).__module__ != messages.__name__:
            await super()._on_message(message)

    async def on_unmount(self) -> None:
        """Stop the threads."""
        self.bridge.close()

    @on(messages.TerminalGone)
    def _terminal_gone(self) -> None:
        self.leaving.leave()

    def _handle_exception(self, error: Exception) -> None:
        """End the app by an unhandled exception: unsaved edits are kept, the details go to a file, not the screen."""
        # The first one is raised again where a test has driven the app.
        if self._exception is None:
            self._exception = error
            self._exception_event.set()
        if not self._exit:
            # Pending work may miss widgets that are already gone while the app quits; it quits all the same.
            self._return_code = EXIT_ERROR
            self.end_by_mistake(error)
        self._close_messages_no_wait()

    def panic(self, *renderables: Any) -> None:
        """Textual's hook for an error that it has a message for."""
        error = sys.exc_info()[1]
        self._handle_exception(error if isinstance(error, Exception) else RuntimeError(*map(str, renderables)))

    def end_by_mistake(self, error: BaseException) -> None:
        """Report an internal error, keep unsaved edits, and exit."""
        self.mistakes.record(error, self.size)
        # The error may be in the drafts themselves.
        with suppress(Exception):
            self.drafts.look()
        self.returning.forget_if_suspect()

    def last_words(self) -> str:
        """The error message printed after the app has ended; empty without an error."""
        view = self.state.live_run
        return self.mistakes.sentence(self.drafts.kept, view.run.id if view is not None else "")

    @on(messages.FirstPaint)
    async def _first_paint(self) -> None:
        """Slow imports, done once the first screen is painted."""
        self.desktop.show_header()
        self.bridge.sample_devices()
        landing = "config" if self._config_path is not None else ""
        last = self.returning.last
        self.runs.begin(self._run_name, sample=self._demo, landing=landing, session=last if not self._is_told else None)
        await self.main.load_panes()
        self._warm_sandbox()
        self.runs.offer_to_chat()
        self._open_config()
        if self._complaints:
            text = "\n".join(self._complaints)
            self.desktop.tell(text, "Left out of your settings", severity="warning", seconds=12)

    def _open_config(self) -> None:
        """Open the configuration that the app begins with."""
        if self._config_path is not None:
            self.returning.begin_with_file(self._config_path)
            self.bridge.load_config(self._config_path)
        elif self._run_name is not None:
            self.returning.begin_with_run(self._run_name)
        elif self._demo or not self._settings.remember:
            self.bridge.load_config(None)
        else:
            self.returning.begin()

    @work(thread=True, group="sandbox")
    def _warm_sandbox(self) -> None:
        """Start the sandbox process that the first row shown as tokens and the first template preview need."""
        from core.template.sandboxed import warm

        with suppress(UserError):  # Whoever needs it reports why there is none.
            warm()

    def _theme_changed(self, _: object) -> None:
        self.desktop.show_header()

    # Requests of the panes, and results of the threads.

    @on(messages.PaneRequested)
    def _pane_requested(self, message: messages.PaneRequested) -> None:
        self.desktop.show_pane(message.pane)

    @on(messages.PaneShown)
    def _pane_shown(self, message: messages.PaneShown) -> None:
        if message.pane == "runs":
            self.bridge.list_runs(message.shown)
        self.desktop.show_header()

    @on(messages.PasteRefused)
    def _paste_refused(self, message: messages.PasteRefused) -> None:
        text = f"It is longer than {message.limit >> 20} MiB. Put it in a file, and name that."
        self.desktop.warn("Not pasted", text)

    @on(messages.ActionFailed)
    def _action_failed(self, message: messages.ActionFailed) -> None:
        self.leaving.stay()
        self.runs.action_failed(message.title, message.error)

    @on(messages.ConfigLoaded)
    def _config_loaded(self, message: messages.ConfigLoaded) -> None:
        self.configuration.loaded(message.document)
        self.returning.loaded()

    @on(messages.ConfigEdited)
    def _config_edited(self, message: messages.ConfigEdited) -> None:
        self.configuration.edited(message)

    @on(messages.ConfigSaved)
    def _config_saved(self, message: messages.ConfigSaved) -> None:
        self.configuration.saved(message.document)

    @on(messages.DatasetChosen)
    def _dataset_chosen(self, message: messages.DatasetChosen) -> None:
        self.configuration.use_dataset(message)

    @on(messages.OptionsChosen)
    def _options_chosen(self, message: messages.OptionsChosen) -> None:
        self.configuration.set_options(message.values, message.notice)

    @on(messages.FormRequested)
    def _form_requested(self, message: messages.FormRequested) -> None:
        self.configuration.open_form(message.form)

    @on(messages.SampleRequested)
    def _sample_requested(self) -> None:
        self.runs.start_sample()

    @on(messages.EditRunRequested)
    def _edit_run_requested(self, message: messages.EditRunRequested) -> None:
        self.configuration.edit_run(message.run)

    @on(messages.ContinueRequested)
    def _continue_requested(self, message: messages.ContinueRequested) -> None:
        self.runs.continue_run(message.run)

    @on(RunList.Chosen)
    def _run_chosen(self, message: RunList.Chosen) -> None:
        self.runs.open(message.row.run)

    @on(messages.OpenRunRequested)
    def _open_run_requested(self, message: messages.OpenRunRequested) -> None:
        self.runs.open(message.run)

    @on(messages.RunStarted)
    def _run_started(self, message: messages.RunStarted) -> None:
        self.runs.started(message.run)

    @on(messages.RunAttached)
    def _run_attached(self, message: messages.RunAttached) -> None:
        self.runs.attached(message)

    @on(messages.RunAdvanced)
    def _run_advanced(self, message: messages.RunAdvanced) -> None:
        self.runs.advanced(message)

    @on(messages.NoRunFound)
    def _no_run_found(self) -> None:
        self.runs.none_found()

    @on(messages.AnswerAwaited)
    def _answer_awaited(self, message: messages.AnswerAwaited) -> None:
        self.runs.await_answer(message.waiting)

    @on(messages.DevicesSampled)
    def _devices_sampled(self, message: messages.DevicesSampled) -> None:
        self.runs.show_devices(message.devices)

    @on(messages.RunsListed)
    def _runs_listed(self, message: messages.RunsListed) -> None:
        self.runs.listed(message)

    @on(messages.ControlRequested)
    def _control_requested(self, message: messages.ControlRequested) -> None:
        self.run_control.request(message.command)

    @on(messages.SettingsRequested)
    def _settings_requested(self, message: messages.SettingsRequested) -> None:
        self.run_control.change_settings(message.run, message.settings)

    @on(messages.ControlAnswered)
    def _control_answered(self, message: messages.ControlAnswered) -> None:
        self.run_control.answered(message)

    @on(messages.ControlFailed)
    def _control_failed(self, message: messages.ControlFailed) -> None:
        self.run_control.failed(message)

    # Keys.

    async def action_quit(self) -> None:
        """Quit, after asking about unsaved edits and a live run."""
        self.leaving.ask()

    @on(messages.StartRequested)
    def action_start(self) -> None:
        """Start a run of the configuration; where an ended run has the focus, start that one again."""
        view = self.state.view
        if self.main.current == "train" and view is not None and not view.is_live:
            self.runs.again(view.run)
        else:
            self.runs.start()

    def action_show_pane(self, name: str) -> None:
        """Show a pane."""
        self.main.press_number(name)

    def action_tile(self) -> None:
        """Tile the panes."""
        self.main.tile()
        if not self.main.can_tile:
            self.desktop.tell(
                f"Panes stand side by side from {TILED_SIZE[0]}×{TILED_SIZE[1]} on; "
                f"this terminal is {self.main.size.width}×{self.main.size.height}."
            )

    def action_help_quit(self) -> None:
        """Explain ctrl+c: it ends other programs, and here it must not end anything by accident."""
        live = self.state.live_run is not None
        text = f"{self.keys['app.quit'].display} leaves the app." + (" Training goes on without it." if live else "")
        if not any(note.message == text for note in self._notifications):
            self.desktop.tell(text)

    def action_save_picture(self) -> None:
        """Save a screenshot in the working directory, or in the home directory where that cannot be written."""
        name = f"localtune-{datetime.now().strftime('%Y%m%d-%H%M%S')}.svg"
        picture = self.export_screenshot(title="localtune-tui")
        for directory in (Path.cwd(), Path.home()):
            path = directory / name
            try:
                path.write_text(picture, encoding="utf-8")
            except OSError as error:
                reason = error.strerror or str(error)
                continue
            self.desktop.tell(f"The picture is in {one_line(str(path), 200)}", seconds=8)
            return
        self.desktop.warn("The picture is not saved", f"{path.parent} cannot be written to: {reason}.")

    def action_help(self) -> None:
        """Show help for the focused pane."""
        from tui.screens.help import HelpScreen

        if self.desktop.is_covered:
            return
        spec = pane_spec(self.main.current)
        pane = self.desktop.panes.find(spec.id)
        self.push_screen(HelpScreen(spec.title, pane.HELP if pane is not None else "", self.keys, spec.id))

    def can_run(self, key: Key) -> bool:
        """Whether a key's action makes sense now; the palette leaves out the others."""
        if key.scope == "app":
            return True
        pane = self.desktop.panes.find(key.scope)
        return pane is not None and pane.check_action(key.action.partition("(")[0], ()) is not False

    async def run_key(self, key: Key) -> None:
        """Run a key's action, in the pane it belongs to."""
        if key.scope == "app":
            await self.run_action(key.action)
            return
        self.main.show_pane(key.scope, zoom=self.main.zoomed)
        if (pane := self.desktop.panes.find(key.scope)) is not None:
            await pane.run_action(key.action)

    def search_themes(self) -> None:
        """Choose a theme, with a preview of the highlighted one."""
        from tui.screens.theme_picker import ThemePicker

        def chosen(name: str | None) -> None:
            if name:
                self._remember_theme(name)

        self.push_screen(ThemePicker(sorted(self.available_themes), self.theme), chosen)

    def _remember_theme(self, name: str) -> None:
        try:
            save_theme(config_dir() / "settings.toml", name)
        except (OSError, UserError) as error:
            self.desktop.warn("The theme is not remembered", str(error))
