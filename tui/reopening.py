"""Reopening: the initial configuration, data and run, from the last session and the runs on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from core.config.document import ConfigDocument
from core.drafts import config_subject, find_draft
from core.errors import UserError
from core.hub_uri import is_hub_entry
from core.paths import working_directory
from core.runs.catalog.earlier import read_run
from core.runs.catalog.result import RunOutcome, ended_since, read_outcome
from core.runs.catalog.rows import newest_live
from core.runs.record.store import Run, find_run, list_runs
from core.text import one_line
from tui.files import entry_path, entry_text, follow_links
from tui.panes.config.editor import Opened, kept_drafts, open_draft, open_run
from tui.panes.config.model import is_there
from tui.session import DataPlace, Session


@dataclass(frozen=True)
class Reopened:
    """Configuration, data and cursors to start with."""

    opened: Opened
    data: Path | None = None
    """The data named by the user, if it is on this machine; the configuration may not use it."""
    place: DataPlace | None = None
    """The place in the Data pane; None for the first row of the configuration's data."""
    option: str = ""
    """The option under the cursor; empty for the first."""
    missing: str = ""
    """A notice about open files that are gone; empty if there are none."""
    ended: RunOutcome | None = None
    """The end of the watched run, or of the newest run, since the last session."""


def reopen(session: Session | None, data: Path | None = None) -> Reopened:
    """The last open configuration, saved or not; else the configuration of the newest run.

    Args:
        session: The last session; None if there is none.
        data: The data named by the user, which replaces the session's; None if none was named.
    """
    before = session or Session(time=0.0)
    missing: list[str] = []
    opened = _last_config(before, missing) or _crashed() or _of_a_run(before) or Opened(ConfigDocument(), "")
    found = Reopened(opened, data if data is not None and is_there(data) else None, option=before.option)
    if data is not None and not (before.data is not None and _is_at(before.data, data)):
        found = replace(found, place=DataPlace(entry_text(data) if is_hub_entry(data) else str(data.absolute())))
    elif before.data is not None:
        if _is_there(before.data):
            found = replace(found, place=before.data)
        else:
            missing.append(f"{_name(before.data.path)}, which was open in the Data pane, is not there now.")
    return replace(found, missing=" ".join(missing), ended=_find_ended(session))


def begin_with(data: Path) -> Reopened:
    """An empty configuration, for the data named by the user."""
    return Reopened(Opened(ConfigDocument(), ""), data if is_there(data) else None)


def reopen_run(name: str) -> Reopened:
    """The configuration of the run named by the user; an empty one if there is no such run."""
    try:
        return Reopened(open_run(find_run(name)))
    except UserError:
        return Reopened(Opened(ConfigDocument(), ""))


def place_of(session: Session) -> Reopened:
    """The cursors of a session, for a configuration that is already open."""
    place = session.data if session.data is not None and _is_there(session.data) else None
    return Reopened(Opened(ConfigDocument(), ""), place=place, option=session.option)


def _last_config(session: Session, missing: list[str]) -> Opened | None:
    """The configuration that was open last; None if there was none, or it can no longer be opened."""
    if session.config:
        path = Path(session.config)
        try:
            return Opened.load(path)
        except UserError as error:
            is_gone = not os.path.lexists(path)
            missing.append(f"{_name(session.config)} is not there any more." if is_gone else one_line(str(error), 300))
    if session.draft:
        draft = next((draft for draft in kept_drafts() if draft.id == session.draft), None)
        try:
            return open_draft(draft) if draft is not None else None
        except UserError as error:
            missing.append(one_line(str(error), 300))
    return None


def _crashed() -> Opened | None:
    """The unsaved configuration of an app that was killed in this directory."""
    draft = find_draft("config", config_subject(None))
    try:
        return open_draft(draft) if draft is not None and not draft.is_released else None
    except UserError:
        return None


def _of_a_run(session: Session) -> Opened | None:
    """The configuration of the session's run, or of a newer run made since."""
    runs = list_runs()
    newest = runs[0] if runs else None
    before = read_run(session.origin)
    try:
        if before is not None and (newest is None or newest.id <= before.id or not _is_newer(newest, session)):
            return open_run(before)
        return open_run(newest) if newest is not None else None
    except UserError:
        return None


def _is_newer(run: Run, session: Session) -> bool:
    """True if a run was created after the session."""
    return run.created is not None and run.created.timestamp() > session.time


def _find_ended(session: Session | None) -> RunOutcome | None:
    if session is None:
        return None
    watched = read_run(session.run) if session.live else None
    newest = next(iter(list_runs()), None)
    if watched is not None and watched.state().is_over:
        return read_outcome(watched)
    return read_outcome(newest) if newest is not None and ended_since(newest, session.time) else None


def find_shown(session: Session | None) -> Run | None:
    """The run to show: the newest live one, one newer than the session, the session's, or the newest; None without."""
    runs = list_runs()
    live = newest_live(runs)
    newest = runs[0] if runs else None
    if live is not None or session is None or (newest is not None and _is_newer(newest, session)):
        return live or newest
    return read_run(session.run) or newest


def _is_there(place: DataPlace) -> bool:
    try:
        return is_there(Path(place.path))
    except (OSError, ValueError):
        return False


def _is_at(place: DataPlace, path: Path) -> bool:
    """True if a place is in a file."""
    return follow_links(entry_path(place.path, working_directory())) == follow_links(path)


def _name(path: str) -> str:
    return one_line(path if is_hub_entry(path) else Path(path).name, 80)
