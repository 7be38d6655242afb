"""The app: its controllers, the messages of threads, and the keys of the whole app."""

from __future__ import annotations

import asyncio
import difflib
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from inspect import isawaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import RenderableType
from textual import events, on, work
from textual.actions import parse
from textual.app import App, InvalidThemeError
from textual.binding import BindingType
from textual.driver import Driver
from textual.message import Message
from textual.screen import Screen

from core.commands.common import EXIT_ERROR
from core.errors import UserError
from core.paths import config_dir, working_directory
from core.text import one_line
from themes.loader import DEFAULT, load_builtin, load_user, variable_defaults
from tui import messages
from tui.bridge import Bridge, Result
from tui.controllers.configuration import Configuration
from tui.controllers.jobs import Jobs
from tui.controllers.returning import Returning
from tui.controllers.run_control import RunControl
from tui.controllers.runs import Leaving, Runs, Starting
from tui.controllers.serving import Serving
from tui.controllers.why import Why
from tui.draft_keeper import LOOK_SECONDS, DraftKeeper
from tui.driver import TerminalDriver
from tui.ending import Mistakes
from tui.files import entry_path, save_text
from tui.glyphs import GLYPH_SETS
from tui.keys import Key, KeyTable, bindings, load_keymap
from tui.main_screen import PAIRED_SIZE, TILED_SIZE, Desktop, MainScreen
from tui.screens.overlay import Overlay
from tui.settings import load_settings, resolve_glyphs, save_setting
from tui.state import AppState
from tui.typed_ahead import Place, TypedAhead
from tui.widgets.forms.ask_bar import KeyQuestion, takes_text

if TYPE_CHECKING:
    from core.runs.record.store import Run

#: Thread limit: some threads follow a run or sample the devices for as long as the app runs.
_THREADS = 32
#: Seconds after which all panes have their widgets.
_SETTLED_SECONDS = 3.0


#: Allocations, and collections of the younger generation, before a generation is collected as garbage.
_THRESHOLDS = (10_000, 20, 20)


def spare_the_screen() -> None:
    """Exempt the app's widgets from garbage collection, which takes 40 to 80 ms for them and delays keys.

    Garbage that exists at this moment is never freed, so call it only in the process of an app.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


class LeavingExecutor(ThreadPoolExecutor):
    """Thread pool that does not block the exit: a file may be long, and a template may never end."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Cancel pending work and accept no more; running threads are not waited for."""
        super().shutdown(wait=False, cancel_futures=True)


class LocaltuneApp(App[str]):
    """The Textual app of localtune-tui.

    Args:
        config_path: A configuration to open.
        run: A run to open: an id, a part of one, a path or ``latest``.
        demo: Whether to start the sample run at once.
        data: A data file or a directory of them to open.
    """

    TITLE = "localtune-tui"
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("app")]
    ENABLE_COMMAND_PALETTE = False  # The app has its own, an overlay like the other screens.

    def __init__(
        self, config_path: Path | None = None, run: str | None = None, demo: bool = False, data: Path | None = None
    ) -> None:
        self.mistakes = Mistakes()
        super().__init__()
        self._data_path = data
        self._config_path, self._run_name, self._demo = config_path, run, demo
        self._settings, self._complaints = load_settings(config_dir() / "settings.toml")
        self._complaints = [f"settings.toml: {problem}" for problem in self._complaints]
        self.glyphs = GLYPH_SETS[resolve_glyphs(self._settings.glyphs)]
        self.pace = self._settings.pace
        overrides, problems = load_keymap(config_dir() / "keymap.toml")
        self._complaints += [f"keymap.toml: {problem}" for problem in problems]
        self.keys = KeyTable(overrides)
        self.set_keymap(overrides)
        self._typed_ahead = TypedAhead(self.keys, self._tell_text_lost)
        if not self._settings.animations:
            self.animation_level = "none"
        self._load_themes()
        self.state = AppState(is_opening=True)
        self.clock: Callable[[], float] = time.time
        """Clock: the present, in Unix seconds."""
        desktop = Desktop(self, self.state, self.keys, lambda: self.clock(), self.write_to_terminal)
        self.desktop = desktop
        self.bridge = Bridge(
            self, desktop.panes, self.keys.way, lambda *failure: self.runs.action_failed(*failure), self.pace
        )
        remembers = self._settings.remember
        self.drafts = DraftKeeper(self.state, desktop.panes, remembers=remembers)
        self.configuration = Configuration(desktop, self.drafts, lambda: self.starting.follow())
        self.returning = Returning(desktop, self.drafts, self.configuration, remembers=remembers)
        self.jobs = Jobs(self, desktop)
        self.leaving = Leaving(
            desktop, self.drafts, self.returning, lambda run: self.run_control.send(run, "stop"), self.jobs.losses
        )
        self.runs = Runs(desktop, self.bridge, self.leaving, self.drafts, self.jobs)
        self.starting = Starting(desktop, self.bridge, self.configuration, self.runs)
        self.serving = Serving(self, desktop)
        self.why = Why(desktop, self.jobs)
        self.run_control = RunControl(desktop, self.bridge, self.leaving, self.runs)

    def write_to_terminal(self, text: str) -> None:
        """Write text to the terminal as is; does nothing while there is no driver."""
        if self._driver is not None:
            self._driver.write(text)

    @property
    def main(self) -> MainScreen:
        """The main screen with the panes."""
        return self.desktop.main

    def _load_themes(self) -> None:
        """Register the built-in and the user's themes, and activate the chosen one."""
        for theme in load_builtin():
            self.register_theme(theme)
        loaded = load_user(config_dir() / "themes")
        for theme in loaded.themes:
            self.register_theme(theme)
        self._complaints += [f"theme {failure}" for failure in loaded.failures]
        wanted = os.environ.get("TEXTUAL_THEME") or self._settings.theme or DEFAULT
        # Textual uses the variable as its default, before our themes are registered.
        self.set_reactive(App.theme, "textual-dark")
        try:
            self.theme = wanted
        except InvalidThemeError:
            near = difflib.get_close_matches(wanted, self.available_themes, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            self._complaints.append(f"there is no theme {one_line(wanted, 40)}{meant}")
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
            return MainScreen(way=self._settings.way)
        return MainScreen(self.returning.pane or "train", self._settings.way, zoomed=self.returning.is_zoomed)

    @property
    def _is_told(self) -> bool:
        """True if the command line names something to open."""
        named = (self._config_path, self._run_name, self._data_path)
        return self._demo or any(name is not None for name in named)

    # Start and end.

    def on_mount(self) -> None:
        """Handle signals as a request to quit, so that the terminal is restored."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(LeavingExecutor(max_workers=_THREADS, thread_name_prefix="app"))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            # Only the main thread can handle signals; elsewhere (in tests) there are none to handle.
            with suppress(RuntimeError, ValueError):
                loop.add_signal_handler(number, self.leaving.leave)
        self.theme_changed_signal.subscribe(self, lambda _: self.desktop.show_header())
        self.set_interval(LOOK_SECONDS, self._keep_drafts)
        self.set_interval(self.pace, self.runs.count_down)

    def on_resize(self, event: events.Resize) -> None:
        """Repaint everything: terminals reflow their content on a resize."""
        if isinstance(self._driver, TerminalDriver):
            self._driver.image.forget()
        if event.size == self.size:
            # The size changed and changed back; Textual does not repaint for that.
            self.screen.refresh()

    def _display(self, screen: Screen[object], renderable: RenderableType | None) -> None:
        """Write only the cells of an update that differ from the terminal's image."""
        # Textual has no other hook between an update and its bytes.
        if isinstance(self._driver, TerminalDriver):
            renderable = self._driver.image.rest_of(renderable, self, screen)
        super()._display(screen, renderable)

    def _keep_drafts(self) -> None:
        if self.is_running:  # while the app shuts down, the panes are removed piece by piece
            self.drafts.look()
            self.returning.look()

    async def on_event(self, event: events.Event) -> None:
        """Handle an event; drop text typed or pasted where nothing takes text."""
        if isinstance(event, events.Key) and not event.is_forwarded:
            if not self._typed_ahead.admits(event, self._place):
                return
        elif isinstance(event, events.Paste) and not event.is_forwarded and not self._place.takes_text:
            self._tell_text_lost()
            return
        await super().on_event(event)

    @property
    def _place(self) -> Place:
        """The meaning of keys where the focus is."""
        screen = self.screen
        focused = screen.focused
        if isinstance(focused, KeyQuestion):
            return Place(own=focused.answers)
        if takes_text(focused):
            return Place(takes_text=True)
        if isinstance(screen, Overlay):
            return Place(screen.TAKES_TEXT, screen.SCOPE, screen.known_keys)
        return Place(scope=self.main.current, own=screen.active_bindings)

    def _tell_text_lost(self) -> None:
        key = self.keys["app.ask"].display
        text = f"Nothing here takes text; {key} writes to the model."
        if not any(note.message == text for note in self._notifications):
            self.desktop.tell(text)

    @on(messages.KeysAhead)
    def _keys_ahead(self, message: messages.KeysAhead) -> None:
        self._typed_ahead.expect(message.keys, goes_on=message.goes_on)

    @on(messages.KeysHandled)
    def _keys_handled(self, message: messages.KeysHandled) -> None:
        start = self.screen.focused or self.screen
        again = messages.KeysHandled(message.reached, message.rounds - 1)
        if message.rounds == 0 or not start.post_message(again):
            message.reached()

    async def _on_message(self, message: Message) -> None:
        # While the app shuts down, results of threads have no widgets left to go to.
        is_of_thread = isinstance(message, Result) or type(message).__module__ == messages.__name__
        if self.is_running or not is_of_thread:
            await super()._on_message(message)

    async def on_unmount(self) -> None:
        """Stop the threads, the jobs, and the server."""
        self.jobs.close()
        self.serving.close()
        self.bridge.close()

    @on(messages.TerminalGone)
    def _terminal_gone(self) -> None:
        self.leaving.leave()

    def _handle_exception(self, error: Exception) -> None:
        """Exit after an unhandled exception: keep unsaved edits, and write the details to a file, not the screen."""
        # Textual's test driver raises the first one again.
        if self._exception is None:
            self._exception = error
            self._exception_event.set()
        if not self._exit:
            # Once the app is exiting, pending work may miss widgets that are already gone; that is no error.
            self._return_code = EXIT_ERROR
            self.end_by_mistake(error)
        self._close_messages_no_wait()

    def panic(self, *renderables: Any) -> None:
        """Textual's hook for errors that it would render on the screen."""
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

    async def first_painted(self) -> None:
        """Load everything that the first paint does not need: panes, runs and the configuration."""
        self.desktop.show_header()
        self.bridge.sample_devices(self.runs.show_devices)
        landing = "config" if self._config_path is not None else "data" if self._data_path is not None else ""
        last = self.returning.last
        if self._demo:
            self.state.expect_run()
        else:
            self.runs.begin(self._run_name, landing=landing, session=last if not self._is_told else None)
        await self.main.load_panes()
        if not self.is_headless:
            self.set_timer(_SETTLED_SECONDS, spare_the_screen)
        self._warm_sandbox()
        self.runs.offer_to_chat()
        # Before the configuration, which a thread reads and restores the last session with.
        data = entry_path(str(self._data_path), working_directory()) if self._data_path is not None else None
        if data is not None and (pane := self.desktop.panes.data) is not None:
            pane.show(data, ask=True)
        self._open_config(data)
        self.runs.look_around()
        if self._complaints:
            text = "\n".join(self._complaints)
            self.desktop.tell(text, "Left out of your settings", severity="warning", seconds=12)

    def _open_config(self, data: Path | None) -> None:
        """Open the initial configuration, for the data file that the user named."""
        if self._config_path is not None:
            self.returning.begin_with_file(self._config_path)
            self.bridge.load_config(self._config_path, self.returning.loaded)
        elif self._run_name is not None:
            self.returning.begin_with_run(self._run_name)
        elif self._demo:
            self.bridge.start_sample(self._sample_started, self._open_new)
        elif data is None and not self._settings.remember:
            self._open_new()
        else:
            self.returning.begin(data)

    def _open_new(self) -> None:
        """Open a new configuration."""
        self.bridge.load_config(None, self.returning.loaded)

    def _sample_started(self, run: Run) -> None:
        """Show the sample run, and open its configuration."""
        self.runs.started(run)
        self.returning.begin_with_run(run.id)

    @work(thread=True, group="sandbox")
    def _warm_sandbox(self) -> None:
        """Start the sandbox process that the first row shown as tokens and the first template preview need."""
        from core.template.sandboxed import warm

        with suppress(UserError):  # Its first user reports the error.
            warm()

    # Results of threads.

    @on(messages.PasteRefused)
    def _paste_refused(self, message: messages.PasteRefused) -> None:
        text = f"It is longer than {message.limit >> 20} MiB. Put it in a file, and name that."
        self.desktop.warn("Not pasted", text)

    @on(messages.AskWhy)
    def _ask_why(self, message: messages.AskWhy) -> None:
        self.why.ask(message)

    @on(Result)
    def _show_result(self, result: Result) -> None:
        result.show()

    # Events.

    def pane_shown(self, name: str, *, shown: bool) -> None:
        """Note that a pane was shown or hidden: runs are listed only while their pane is visible."""
        if name == "runs":
            self.bridge.list_runs(shown)
        self.desktop.show_header()

    def on_app_focus(self) -> None:
        """Update the header when the terminal gets the focus again."""
        self.runs.show_newest_devices()

    # Keys.

    async def action_quit(self) -> None:
        """Quit; asks about unsaved edits and a live run first."""
        self.leaving.ask()

    def action_start(self) -> None:
        """Start a run of the configuration; in the Train pane with an ended run, start that one again."""
        self.starting.start_in(self.main.current)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable priority keys while text is being entered or a screen covers the panes.

        A start key that is held down opens only one card that way.
        """
        if action in ("show_pane", "ask_model", "start") and (
            self.desktop.is_covered or takes_text(self.screen.focused)
        ):
            return False
        return super().check_action(action, parameters)

    def action_show_pane(self, name: str) -> None:
        """Show a pane."""
        self.main.press_number(name)

    def action_ask_model(self) -> None:
        """Focus the chat's prompt, wherever the focus is."""
        self.main.show_pane("chat", zoom=self.main.zoomed)
        if (pane := self.desktop.panes.chat) is not None:
            pane.action_write()

    def action_tile(self) -> None:
        """Show as many panes as there is room for."""
        self.main.tile()
        if self.main.room == 1:
            self.desktop.tell(
                f"Two panes are shown from {PAIRED_SIZE[0]}×{PAIRED_SIZE[1]} on, four from "
                f"{TILED_SIZE[0]}×{TILED_SIZE[1]}; this terminal is {self.main.size.width}×{self.main.size.height}."
            )

    def action_turn(self) -> None:
        """Stack the two visible panes instead of putting them side by side, or back."""
        way = self.main.turn()
        if way is None:
            self.desktop.tell("With two panes on screen, this stacks them or puts them side by side.")
            return
        self._remember("panes", way, "layout")

    def action_help_quit(self) -> None:
        """Explain ctrl+c, which must not end anything by accident here."""
        live = self.state.live_run is not None
        way = f"{'esc, then ' if self._place.takes_text else ''}{self.keys['app.quit'].display}"
        text = f"{way} leaves the app." + (" Training goes on without it." if live else "")
        if not any(note.message == text for note in self._notifications):
            self.desktop.tell(text)

    def action_save_picture(self) -> None:
        """Save a screenshot in the working directory, or in the home directory if that is not writable."""
        try:
            path = save_text("localtune", ".svg", self.export_screenshot(title="localtune-tui"))
        except UserError as error:
            self.desktop.warn("The screenshot was not saved", error.message)
            return
        self.desktop.tell(f"The screenshot is in {one_line(str(path), 200)}", seconds=8)

    def action_help(self) -> None:
        """Show help for the focused pane, or for the screen over the panes."""
        from tui.screens.help import HelpScreen

        top = self.screen
        if isinstance(top, Overlay):
            self.push_screen(HelpScreen(top.help_title, top.help_name, self.keys, top.SCOPE, lambda: top.help_keys))
        elif (pane := self.desktop.panes.find(self.main.current)) is not None and not self.desktop.is_covered:
            self.push_screen(pane.help_screen())

    def action_find_entry(self) -> None:
        """Find an entry of the list on the screen over the panes."""
        from tui.screens.pick import find_entry

        find_entry(self.screen)

    def action_queue(self) -> None:
        """Show the queue of runs."""
        self.starting.show_queue()

    def action_jobs(self) -> None:
        """Show the job, or the list of jobs."""
        self.jobs.show()

    def action_self_test(self) -> None:
        """Open the self-test; a key in it begins the test."""
        from tui.screens.selftest import SelfTestPage

        if not self.desktop.is_covered:
            self.jobs.open(SelfTestPage())

    def action_evaluate(self) -> None:
        """Evaluate the model of the shown run on a file of prompts."""
        self.runs.evaluate(self.state.view.run if self.state.view is not None else None)

    def can_run(self, key: Key) -> bool:
        """True if a key's action is available now; the palette hides the others."""
        if key.scope == "app":
            return True
        pane = self.desktop.panes.find(key.scope)
        return pane is not None and pane.check_action(key.action.partition("(")[0], ()) is not False

    async def run_key(self, key: Key) -> None:
        """Run a key's action, in the pane it belongs to."""
        if key.scope == "app":
            # Not by its binding, which is disabled while text is being entered.
            _, name, parameters = parse(key.action)
            result = getattr(self, f"action_{name}")(*parameters)
            if isawaitable(result):
                await result
            return
        self.main.show_pane(key.scope, zoom=self.main.zoomed)
        if (pane := self.desktop.panes.find(key.scope)) is not None:
            await pane.run_action(key.action)

    def action_command_palette(self) -> None:
        """Open the command palette, over a screen with that screen's commands, and run the chosen command."""
        from tui.palette import palette_screen

        top = self.screen

        def chosen_over(identity: str | None) -> None:
            kind, _, key = (identity or "").partition(":")
            if key:
                self.simulate_key(key)
            elif kind:
                self.call_later(top.run_action, self.keys[kind].action)

        def chosen(identity: str | None) -> None:
            kind, _, option = (identity or "").partition(":")
            if option:
                self.call_later(self._go_to_option, option)
            elif kind:
                self.call_later(self.run_key, self.keys[kind])

        if isinstance(top, Overlay) and top.id != "palette":
            self.push_screen(palette_screen(self.keys, top.SCOPE, top.offers, top.help_keys), chosen_over)
        elif not self.desktop.is_covered:
            self.push_screen(palette_screen(self.keys, self.main.current, self.can_run), chosen)

    def _go_to_option(self, name: str) -> None:
        self.main.show_pane("config", zoom=self.main.zoomed)
        if (pane := self.desktop.panes.config) is not None:
            pane.go_to_option(name)

    def search_themes(self) -> None:
        """Choose a theme, with a preview of the highlighted one."""
        from tui.screens.theme_picker import ThemePicker

        def chosen(name: str | None) -> None:
            if name:
                self._remember("theme", name, "theme")

        # The app's own first: the others do not set its colors.
        names = sorted(self.available_themes, key=lambda name: (not name.startswith("localtune-"), name))
        self.push_screen(ThemePicker(names, self.theme), chosen)

    def _remember(self, setting: str, value: str, name: str) -> None:
        try:
            save_setting(config_dir() / "settings.toml", setting, value)
        except (OSError, UserError) as error:
            self.desktop.warn(f"The {name} is not remembered", str(error))
