"""The questions that the app asks, each with its words."""

from __future__ import annotations

from textual.content import Content

from core.errors import UserError
from core.text import one_line, sanitize
from tui.screens.choice import Choice, ChoiceDialog
from tui.state import RunView

LEAVE, STOP = "leave", "stop"
SAVE, DISCARD = "save", "discard"
YES = "yes"


class QuitDialog(ChoiceDialog):
    """Asks what is to become of the run that is on.

    Args:
        view: That run.
    """

    def __init__(self, view: RunView) -> None:
        super().__init__(
            "Leave",
            _run_sentence(view),
            [
                Choice("l", LEAVE, "leave it running"),
                Choice("s", STOP, "stop it after a checkpoint", "it can be continued"),
                Choice("escape", "", "stay"),
            ],
        )


class UnsavedDialog(ChoiceDialog):
    """Asks what is to become of edits that no file has.

    Args:
        name: The file of the configuration; empty where it has none yet.
        view: The run that is on, which is not affected; None for none.
    """

    def __init__(self, name: str, view: RunView | None) -> None:
        shown = one_line(name, 60)
        text = Content.assemble((shown or "The configuration", "bold"), " has edits that are not saved.")
        if view is not None:
            text = Content.assemble(text, "\n\n", _run_sentence(view))
        super().__init__(
            "Leave",
            text,
            [
                Choice("s", SAVE, "save and leave", "" if shown else "asks for the name of a file first"),
                Choice("d", DISCARD, "leave without saving"),
                Choice("escape", "", "stay"),
            ],
        )


def _run_sentence(view: RunView) -> Content:
    # No step: the run goes on while the question stands.
    return Content.assemble(
        (one_line(view.run.id, 60), "bold"),
        f" is {view.state.state}.\n"
        "It does not need the app: it goes on when you leave, and 'localtune-tui' shows it again.",
    )


def stop_dialog(view: RunView) -> ChoiceDialog:
    """Whether the run is really to stop."""
    return ChoiceDialog(
        "Stop the run",
        f"{view.run.id} stops after a checkpoint. It can be continued from there, exactly.",
        [Choice("y", YES, "stop it"), Choice("n", "", "let it go on")],
    )


def error_dialog(title: str, error: UserError) -> ChoiceDialog:
    """What went wrong with something the user asked for, and what to do."""
    text = Content(sanitize(error.message))
    if error.hint:
        text = Content.assemble(text, "\n\n", (sanitize(error.hint), "$muted"))
    return ChoiceDialog(title, text, [Choice("enter", "", "close")], alarm=True)
