"""Configurations that were never saved: kept as drafts, described for the list, and opened again."""

from __future__ import annotations

from pathlib import Path

from core.config.document import ConfigDocument
from core.drafts import Draft, list_drafts
from core.errors import UserError
from core.paths import shown_path, working_directory
from core.runs.catalog.earlier import Origin, begin_from, run_name
from core.runs.record.sentences import brief_id
from core.runs.record.store import Run
from core.text import one_line
from tui.panes.config.editor import Opened, rebase


def kept_drafts() -> list[Draft]:
    """The drafts of configurations that were never saved and that no app is working on, the newest first."""
    return [draft for draft in list_drafts("config") if draft.is_of_new_config and draft.is_left]


def describe(draft: Draft) -> tuple[str, str]:
    """A name for a draft, by its data, and when and where it was left."""
    try:
        document = ConfigDocument(_text(draft))
        name, model = run_name(document), document.get("model.base")
    except UserError:
        name, model = "", None
    parts = [f"not saved, {draft.when}", shown_path(Path(draft.subject))]
    parts += [Path(model).name] if isinstance(model, str) else []
    return one_line(name or "no data", 60), one_line("  ".join(parts), 200)


def open_draft(draft: Draft) -> Opened:
    """The configuration of a draft, to go on with; its paths mean the same files as where it was begun.

    Raises:
        UserError: If it is no configuration.
    """
    document = ConfigDocument(_text(draft))
    rebase(document, Path(draft.subject), working_directory())
    run, unread = draft.data.get("run"), draft.data.get("unread")
    # A run that is gone is still where the values come from.
    found = Run(Path(run)) if isinstance(run, str) and run else None
    return Opened(
        document,
        f"opening what was not saved at {draft.when}",
        f"✓ as it was at {draft.when}, not saved yet",
        origin=Origin.of(found) if found is not None else None,
        draft=draft.id,
        unread=unread if isinstance(unread, str) else "",
    )


def open_run(run: Run) -> Opened:
    """The configuration of a run as a new one.

    Raises:
        UserError: If ``run.toml`` is missing or is no configuration.
    """
    document, name = begin_from(run), brief_id(run.id)
    label = f"opening the configuration of {name}"
    return Opened(document, label, f"✓ the configuration of {name}, as a new one", origin=Origin.of(run), is_begun=True)


def _text(draft: Draft) -> str:
    text = draft.data.get("text")
    if not isinstance(text, str):
        raise UserError("The draft has no configuration in it.", "Discard it.")
    return text
