"""The app's dialogs, each with its text."""

from __future__ import annotations

from textual.content import Content

from core.errors import UserError
from core.runs.names import brief_id
from core.text import one_line, sanitize
from tui.screens.choice import Choice, ChoiceDialog
from tui.state import RunView

LEAVE, STOP = "leave", "stop"
SAVE, DISCARD = "save", "discard"
RESTORE = "restore"
STOP_NOW, SIGNAL, KILL = "stop now", "signal", "kill"
YES = "yes"
AGAIN, AS_EDITED = "again", "as edited"


def quit_dialog(view: RunView) -> ChoiceDialog:
    """The question about a live run, when the user quits."""
    return ChoiceDialog(
        "Leave",
        _run_sentence(view),
        [
            Choice("l", LEAVE, "leave it running"),
            Choice("s", STOP, "stop it after a checkpoint", "it can be continued"),
            Choice("escape", "", "stay"),
        ],
    )


def unsaved_dialog(name: str, view: RunView | None) -> ChoiceDialog:
    """The question about unsaved edits, when the user quits.

    Args:
        name: The file of the configuration; empty where it has none yet.
        view: The live run, which is not affected; None for none.
    """
    shown = one_line(name, 60)
    text = Content.assemble((shown or "The configuration", "bold"), " has edits that are not saved.")
    if view is not None:
        text = Content.assemble(text, "\n\n", _run_sentence(view))
    return ChoiceDialog(
        "Leave",
        text,
        [
            Choice("s", SAVE, "save and leave", "" if shown else "asks for the name of a file first"),
            Choice("d", DISCARD, "leave without saving"),
            Choice("escape", "", "stay"),
        ],
    )


def stale_draft_dialog(name: str, when: str) -> ChoiceDialog:
    """The question about edits that an earlier app has left, when their file has changed since.

    Args:
        name: The configuration's file name.
        when: The time of the edits, in words.
    """
    text = Content.assemble(
        (one_line(name, 60), "bold"),
        f" has edits of {when} that were not saved, and was changed by something else since.",
    )
    return ChoiceDialog(
        "Kept for you",
        text,
        [
            Choice("escape", "", "decide at the next start"),
            Choice("r", RESTORE, "take the edits", "nothing is written before you save"),
            Choice("d", DISCARD, "give the edits up", "the file is as it is"),
        ],
    )


def _run_sentence(view: RunView) -> Content:
    # No step: the run goes on while the question is on the screen.
    return Content.assemble(
        (one_line(view.run.id, 60), "bold"),
        f" is {view.state.state}.\n"
        "It does not need the app: it goes on when you leave, and 'localtune-tui' shows it again.",
    )


def again_dialog(identity: str, name: str) -> ChoiceDialog:
    """The question which values a run is started again with.

    Args:
        identity: The id of the ended run.
        name: Its configuration, which has other values by now.
    """
    shown, brief = one_line(name, 60), brief_id(identity)
    text = Content.assemble((shown, "bold"), f" has other values by now than {brief} was started with.")
    return ChoiceDialog(
        "Start again",
        text,
        [
            Choice("r", AGAIN, f"as {brief} was"),
            Choice("e", AS_EDITED, f"with {shown} as it is now"),
            Choice("escape", "", "start nothing"),
        ],
    )


def stop_dialog(view: RunView) -> ChoiceDialog:
    """The question about a stop of the run: the ways to stop, and the loss of each."""
    name, told = view.state.state, f" is {view.state.state}."
    if name == "stalled":
        told = f": {view.state.reason}.\nIt may not hear what it is told; killing its process ends it all the same."
    kill = [Choice("k", KILL, "kill its process", "only if it hangs; asks once more")] if view.has_process else []
    if name == "stopping":
        # There is nothing left to ask of it, and enter means to wait.
        told = " is stopping, and ends by itself."
        choices = [Choice("n", "", "let it end"), *kill]
    elif name in ("queued", "starting"):
        choices = [Choice("y", STOP, "stop it"), *kill, Choice("n", "", "let it start")]
    else:
        choices = [
            Choice("y", STOP, "stop after a checkpoint", "it can be continued exactly"),
            Choice("w", STOP_NOW, "stop now, without one", "what is not saved is lost"),
            *kill,
            Choice("n", "", "keep training"),
        ]
    text = Content.assemble((one_line(view.run.id, 60), "bold"), f"{told}\n", _unsaved(view))
    return ChoiceDialog("Stop the run", text, choices)


def kill_dialog(view: RunView) -> ChoiceDialog:
    """The question before the process of a run is killed."""
    saved = view.saved_step
    later = (
        f"It can be continued from the checkpoint of step {saved}."
        if saved is not None
        else "It can only be started again."
    )
    text = Content.assemble(
        f"Process {view.state.pid} of ",
        (one_line(view.run.id, 60), "bold"),
        " is ended at once and saves nothing (SIGKILL).\n",
        _unsaved(view),
        f" {later}",
    )
    return ChoiceDialog(
        "Kill the process", text, [Choice("n", "", "leave it alone"), Choice("y", YES, "kill it")], alarm=True
    )


def unanswered_dialog(error: UserError) -> ChoiceDialog:
    """The question about a run that does not answer to a stop."""
    return ChoiceDialog(
        "Stop failed",
        _error_text(error),
        [
            Choice("t", SIGNAL, "tell it by a signal", "it stops after a checkpoint, if it can"),
            Choice("k", KILL, "kill its process", "asks once more"),
            Choice("escape", "", "leave it alone"),
        ],
        alarm=True,
    )


def _unsaved(view: RunView) -> str:
    """The loss of a stop without a checkpoint, as of now."""
    step, saved = view.step, view.saved_step
    if not step:
        return "No step is done yet."
    if saved is None:
        return f"Not saved so far: all {step} steps; there is no checkpoint yet."
    if step <= saved:
        return f"Step {saved} is saved, and is the last one done so far."
    count = step - saved
    return f"Not saved so far: {count} {'step' if count == 1 else 'steps'} after the checkpoint of step {saved}."


def error_dialog(title: str, error: UserError) -> ChoiceDialog:
    """The error of a request of the user, and its remedy."""
    return ChoiceDialog(title, _error_text(error), [Choice("enter", "", "close")], alarm=True)


def _error_text(error: UserError) -> Content:
    text = Content(sanitize(error.message))
    return Content.assemble(text, "\n\n", (sanitize(error.hint), "$muted")) if error.hint else text
