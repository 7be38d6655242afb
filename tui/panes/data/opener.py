"""Opening files: by path, from the configuration, again; what was open stays open until another is."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from core.config.document import ConfigDocument
from core.errors import UserError
from core.hub.store import NotFetchedError
from core.hub_uri import is_hub_entry
from tui.data_paths import data_paths, entry_text, follow_links
from tui.datasets.plan import Reading
from tui.datasets.tasks import OpenFailed
from tui.datasets.view import DatasetView
from tui.keys import KeyTable
from tui.panes.data.session import DatasetSession


def sample_path() -> Path:
    """The sample tickets."""
    return Path(str(files("sample_data").joinpath("tickets_train.jsonl")))


class Opener:
    """Which file is being opened, and which is to be.

    Args:
        session: The file that is shown.
    """

    def __init__(self, session: DatasetSession) -> None:
        self._session = session
        self.opening: Path | None = None
        """The file that is being opened."""
        self.asks = False
        """Whether to ask for it if it is not on this machine but can be downloaded."""
        self.missing: Path | None = None
        """The file that was to be opened, and is not on this machine."""
        self._followed: Path | None = None

    def begin(self, path: Path, *, ask: bool) -> Reading:
        """Wait for a file; how it is to be read."""
        self.opening, self.asks, self.missing = path, ask, None
        return self._session.plan.reading.of(path)

    def follow(self, document: ConfigDocument) -> Path | None:
        """What a configuration trains on, if that is another file than before and not shown yet."""
        path = next(iter(data_paths(document, "train")), None)
        before, self._followed = self._followed, path
        if path is None or path == before:
            return None
        shown = self.opening or self._shown
        return path if shown is None or follow_links(shown) != str(path) else None

    def awaits(self, path: Path) -> bool:
        """Whether a file that has been opened, or could not be, is the one waited for; it no longer is then."""
        if path != self.opening:
            return False
        self.opening = None
        return True

    def explain(self, failed: OpenFailed, keys: KeyTable) -> UserError:
        """Why a file is not open, and what to do."""
        if not isinstance(failed.error, NotFetchedError):
            return failed.error
        self.missing = failed.path
        hint = f"{keys['data.reload'].display} asks whether to download it; outside the app, {failed.error.hint}"
        return UserError(failed.error.message, hint)

    @property
    def start(self) -> str:
        """What a path that is typed begins with."""
        if (path := self._shown) is None:
            return ""
        return entry_text(path) if is_hub_entry(path) else f"{path.parent}/"

    @property
    def directory(self) -> Path:
        """Where to look for files: around the one that is shown, else in the working directory."""
        path = self._shown
        return Path.cwd() if path is None or is_hub_entry(path) else path.parent

    @property
    def _shown(self) -> Path | None:
        view: DatasetView | None = self._session.view
        return view.path if view is not None else None
