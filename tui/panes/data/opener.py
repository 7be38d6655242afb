"""Opening of files: by path, from the configuration, or again; the open file stays until another is open."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from core.config.document import ConfigDocument
from core.errors import UserError
from core.hub.store import NotFetchedError
from core.hub_uri import is_hub_entry
from core.path_kind import path_kind
from core.paths import working_directory
from core.text import one_line
from tui.data_paths import data_paths, entry_text, follow_links
from tui.keys import KeyTable
from tui.panes.data.session import DatasetSession


def sample_path() -> Path:
    """The path of the sample tickets."""
    return Path(str(files("sample_data").joinpath("tickets_train.jsonl")))


class Opener:
    """The state of opening: the file being opened, or the one that is missing.

    Args:
        session: The file that is shown.
    """

    def __init__(self, session: DatasetSession) -> None:
        self._session = session
        self.opening: Path | None = None
        """The file being opened."""
        self.missing: Path | None = None
        """The file that was wanted, and is not on this machine."""
        self.failure: Path | None = None
        """The file that could not be opened, while that is shown."""
        self._followed: Path | None = None

    def begin(self, path: Path) -> None:
        """Begin to wait for a file."""
        self.opening, self.missing, self.failure = path, None, None

    def follow(self, document: ConfigDocument) -> Path | None:
        """The training file of a configuration, if it is another file than before and not shown yet."""
        path = next(iter(data_paths(document, "train")), None)
        before, self._followed = self._followed, path
        if path is None or path == before:
            return None
        return path if not self.is_at(path) else None

    def is_at(self, path: Path) -> bool:
        """Whether a file is being opened, or else shown."""
        shown = self.opening or self._shown
        return shown is not None and follow_links(shown) == follow_links(path)

    def forget_failure(self, document: ConfigDocument) -> bool:
        """Forget a file that could not be opened and is not wanted any more; returns whether there was one."""
        if self.failure is None or self.failure in data_paths(document, "train"):
            return False
        self.failure = None
        return True

    def failed(self, path: Path, error: UserError, keys: KeyTable) -> UserError:
        """Note the failure of the opening; returns its reason, and a remedy."""
        self.opening, self.failure = None, path
        if not isinstance(error, NotFetchedError):
            if path_kind(path) == "config":
                # In few words, as the line has room for few.
                name = one_line(path.name, 40)
                hint = f"{keys['config.open'].display} in the Config pane opens it."
                return UserError(f"{name} is a configuration, not data.", hint)
            return error
        self.missing = path
        hint = f"{keys['data.reload'].display} asks whether to download it; outside the app, {error.hint}"
        return UserError(error.message, hint)

    @property
    def start(self) -> str:
        """The initial text for a typed path."""
        if (path := self._shown) is None:
            return ""
        return entry_text(path) if is_hub_entry(path) else f"{path.parent}/"

    @property
    def directory(self) -> Path:
        """The directory to browse for files: the one of the shown file, else the working directory."""
        path = self._shown
        return working_directory() if path is None or is_hub_entry(path) else path.parent

    @property
    def _shown(self) -> Path | None:
        view = self._session.view
        return view.path if view is not None else None
