"""Opening files in the data pane: by path, from the tree, from the configuration, again."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from textual import on, work
from textual.widgets import DirectoryTree

from core.config.document import ConfigDocument
from core.errors import UserError
from core.hub.store import NotFetchedError
from core.hub_uri import is_hub_entry
from tui.data_paths import data_paths, entry_text, follow_links
from tui.datasets.plan import Reading
from tui.datasets.tasks import Opened, OpenFailed, ScanFailed, Scanned, open_dataset, scan_dataset
from tui.datasets.view import DatasetView
from tui.panes.data.finder import DatasetSearch
from tui.widgets.lists.data_tree import DATA_SUFFIXES, DataTree


class DatasetOpening(DatasetSearch):
    """Opens files in threads; what was open stays open until another is."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._opening: Path | None = None
        self._asks = False
        self._missing: Path | None = None
        self._followed: Path | None = None

    def show(self, path: Path, *, ask: bool = False) -> None:
        """Open a file and show its rows; what is wrong with it is said in the pane.

        Args:
            path: What is to be opened.
            ask: Whether to ask for what is not on this machine but can be downloaded.
        """
        self._opening, self._asks = path, ask
        self._missing = None
        self.set_status(f"opening {path.name} …")
        self._open(path, self.plan.reading.of(path))

    def follow(self, document: ConfigDocument) -> None:
        """Follow a configuration, and show what it trains on if that is another file than before."""
        self.configure(document)
        paths = data_paths(document, "train")
        path = paths[0] if paths else None
        before, self._followed = self._followed, path
        if path is None or path == before:
            return
        shown = self._opening or (self.view.path if self.view is not None else None)
        if shown is None or follow_links(shown) != str(path):
            self.show(path)

    @work(thread=True, exclusive=True, group="data-open")
    def _open(self, path: Path, reading: Reading) -> None:
        open_dataset(path, reading, self.post_message)

    @on(Opened)
    def _opened(self, message: Opened) -> None:
        view = message.view
        if view.path != self._opening:
            view.close()
            return
        self._opening = None
        self.end_analysis()
        if self.view is not None:
            self.view.close()
        self.view, self.filter, self.indexed = view, None, 1.0
        self.set_status("")
        self.load_masker()
        self.forget_tokens()
        self.rows.show(self.cells, self.columns, view.count)
        self.mark("")
        self.show_only("data-body")
        self.prefer_focus(self.rows)
        self.refresh_title()
        self.show_row()
        # The configuration may have changed while the file was being opened.
        self.read_as_planned(view)
        self._scan(view)

    @on(OpenFailed)
    def _open_failed(self, message: OpenFailed) -> None:
        if message.path != self._opening:
            return
        self._opening = None
        error = message.error
        if isinstance(error, NotFetchedError):
            if self._asks:
                self._ask_to_fetch(message.path, error)
            self._missing = message.path
            key = self.keys["data.reload"].display
            error = UserError(error.message, f"{key} asks whether to download it; outside the app, {error.hint}")
        if self.view is not None:
            self.set_status(f"✗ {error}")
        else:
            self.set_status("")
            self.show_empty(error)

    def _ask_to_fetch(self, path: Path, error: NotFetchedError) -> None:
        """Let the user decide whether it is downloaded; if it is, open it."""
        from tui.screens.fetch import FetchDialog

        def ended(is_here: bool | None) -> None:
            if is_here:
                self.show(path)

        self.app.push_screen(FetchDialog(error.entry, error.message), ended)

    @work(thread=True, exclusive=True, group="data-scan")
    def _scan(self, view: DatasetView) -> None:
        scan_dataset(view, self.post_message)

    @on(Scanned)
    def _scanned(self, message: Scanned) -> None:
        view = message.view
        if view is not self.view:
            return
        self.indexed = message.fraction
        if self.filter is None:
            self.rows.count = view.count
        self.refresh_title()
        if view.file.complete:
            self.start_analysis()

    @on(ScanFailed)
    def _scan_failed(self, message: ScanFailed) -> None:
        if message.view is self.view:
            message.view.failure = message.error
            self.refresh_status()

    def show_empty(self, error: UserError | None = None) -> None:
        """Say what to do first, and what went wrong before."""
        raise NotImplementedError

    # Keys.

    def action_ask_path(self) -> None:
        """Ask for a path."""
        start = ""
        if self.view is not None:
            path = self.view.path
            start = entry_text(path) if is_hub_entry(path) else f"{path.parent}/"
        self.ask_bar.ask_path("open", "open", start, suffixes=DATA_SUFFIXES)

    def action_reload(self) -> None:
        """Open the file again, or ask for the one that is not on this machine."""
        if self._missing is not None:
            self.show(self._missing, ask=True)
        elif self.view is not None:
            self.show(self.view.path)

    def action_open_sample(self) -> None:
        """Open the sample tickets."""
        self.show(Path(str(files("sample_data").joinpath("tickets_train.jsonl"))))

    async def action_browse(self) -> None:
        """Show the directories around the file, or the working directory."""
        browser = self.query_one("#data-browser")
        await browser.remove_children()
        beside = self.view is not None and not is_hub_entry(self.view.path)
        tree = DataTree(self.view.path.parent if self.view is not None and beside else Path.cwd())
        await browser.mount(tree)
        self.show_only("data-browser")
        self.set_status("enter opens · backspace goes up · esc goes back")
        tree.focus()

    @on(DirectoryTree.FileSelected)
    async def _picked(self, message: DirectoryTree.FileSelected) -> None:
        message.stop()
        await self._leave_tree()
        self.show(message.path)

    @on(DataTree.Left)
    async def _tree_left(self, message: DataTree.Left) -> None:
        message.stop()
        await self._leave_tree()

    async def _leave_tree(self) -> None:
        self.set_status("")
        self.show_only("data-body" if self.view is not None else "data-empty")
        target = self.rows if self.view is not None else self.query_one("#data-empty")
        target.focus()
        await self.query_one("#data-browser").remove_children()
