"""Dialogs of the app, with their texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.await_complete import AwaitComplete
from textual.content import Content

from core.errors import UserError
from core.runs.record.state import RunState, in_words
from core.runs.record.store import Run, complete_checkpoints
from core.text import one_line, sanitize
from core.units import format_bytes
from tui.screens.choice import Choice, ChoiceDialog
from tui.shell import copy_text
from tui.state import RunView

if TYPE_CHECKING:
    from core.config.facts import Unkept

LEAVE, STOP = "leave", "stop"
SAVE, DISCARD = "save", "discard"
RESTORE = "restore"
STOP_NOW, SIGNAL, KILL, TAKE_BACK = "stop now", "signal", "kill", "take back"
COPY_CODE, COPY_PATH, _COPY = "copy code", "copy path", "copy"
YES, FOR_GOOD = "yes", "for good"
ADD = "add"
_STAY = Choice("escape", "", "stay")


def unmet_dialog(wishes: Sequence[Unkept]) -> ChoiceDialog:
    """The question before a run starts whose deadline or energy limit cannot be met."""
    return ChoiceDialog(
        "Cannot be met",
        one_line(" ".join(map(str, wishes)), 600),
        Choice("escape", "", "leave it"),
        Choice("y", YES, "start it anyway", "as close to the wish as possible"),
    )


def quit_dialog(view: RunView | None, losses: Sequence[str] = (), served: str = "") -> ChoiceDialog:
    """The question about a live run and jobs when the user quits.

    Args:
        view: The run; None for none.
        losses: Sentences about the jobs, which end with the app.
        served: The name of the model that is served, which ends with the app; empty for none.
    """
    it = "the run" if losses else "it"
    stop = [Choice("x", STOP, f"stop {it} after a checkpoint", "it can be continued")] if view is not None else []
    text = _goes_on(view, losses, served)
    if not losses:
        return ChoiceDialog("Leave", text, Choice("l", LEAVE, "leave it running", "so does enter"), *stop, _STAY)
    leave = Choice("l", LEAVE, f"leave and cancel the {'job' if len(losses) == 1 else 'jobs'}")
    return ChoiceDialog("Leave", text, Choice("escape", "", "stay", "so does enter"), leave, *stop)


def starting_dialog() -> ChoiceDialog:
    """The question about a run that is still starting, when the user quits without waiting for it."""
    return ChoiceDialog(
        "Leave",
        "A run is still being started. The app leaves by itself as soon as its worker is up.",
        Choice("escape", "", "wait for it"),
        Choice("l", LEAVE, "leave now", "'localtune-tui runs' shows how it went"),
    )


def unsaved_dialog(name: str, view: RunView | None, losses: Sequence[str] = (), served: str = "") -> ChoiceDialog:
    """The question about unsaved edits, when the user quits.

    Args:
        name: The file of the configuration; empty if it has none yet.
        view: The live run, which is not affected; None for none.
        losses: Sentences about the jobs, which end with the app.
        served: The name of the model that is served, which ends with the app; empty for none.
    """
    shown = one_line(name, 60)
    text = Content.assemble((shown or "The configuration", "bold"), " has edits that are not saved.")
    if view is not None or losses or served:
        text = Content.assemble(text, "\n\n", _goes_on(view, losses, served))
    leave = (
        Choice("s", SAVE, "save and leave", "" if shown else "asks for the name of a file first"),
        Choice("d", DISCARD, "leave without saving"),
    )
    # Enter gives the first answer, which must not cancel a job.
    return ChoiceDialog("Leave", text, *((_STAY, *leave) if losses else (*leave, _STAY)))


def stale_draft_dialog(name: str, when: str) -> ChoiceDialog:
    """The question about unsaved edits of an earlier session whose file has changed since.

    Args:
        name: The configuration's file name.
        when: The time of the edits, in words.
    """
    text = Content.assemble(
        (one_line(name, 60), "bold"),
        f" has edits of {when} that were not saved, and was changed by another program since.",
    )
    return ChoiceDialog(
        "Kept for you",
        text,
        Choice("escape", "", "decide at the next start"),
        Choice("r", RESTORE, "restore the edits", "nothing is written before you save"),
        Choice("d", DISCARD, "discard the edits", "the file stays as it is"),
    )


def _goes_on(view: RunView | None, losses: Sequence[str], served: str) -> Content:
    """The run, which goes on without the app, and the jobs and the server, which do not."""
    parts = [Content(loss) for loss in losses]
    parts += [Content(f"The server for {one_line(served, 60)} ends with the app.")] if served else []
    if view is not None:
        # No step: the run goes on while the question is on the screen.
        goes_on = "It does not need the app: it goes on after you leave, and 'localtune-tui' shows it again."
        run = Content.assemble((one_line(view.run.id, 60), "bold"), f" is {view.state.state}.\n{goes_on}")
        parts.insert(0, run)
    return Content("\n\n").join(parts)


def stop_dialog(view: RunView) -> ChoiceDialog:
    """The question how to stop the run, with the loss of each way."""
    name, told = view.state.state, f" is {view.state.state}."
    if name == "stalled":
        told = f": {view.state.reason}.\nIt may not respond; killing its process ends it anyway."
    kill = [Choice("k", KILL, "kill its process", "only if it hangs; asks once more")] if view.has_process else []
    if name == "stopping":
        # The only answer left is to wait, which is enter, or to kill.
        told = " is stopping, and ends by itself."
        choices = [Choice("n", "", "let it end"), *kill]
    elif "stop" in view.pending:
        told = " is about to stop, after this step."
        back = Choice("t", TAKE_BACK, "take it back", "training goes on")
        choices = [Choice("n", "", "let it stop"), back, *kill]
    elif name in ("queued", "starting"):
        choices = [Choice("y", STOP, "stop it"), *kill, Choice("n", "", "let it start")]
    else:
        choices = [
            Choice("y", STOP, "stop after a checkpoint", "it can be continued exactly"),
            Choice("w", STOP_NOW, "stop now, without a checkpoint", "asks once more"),
            *kill,
            Choice("n", "", "keep training"),
        ]
    text = Content.assemble((one_line(view.run.id, 60), "bold"), f"{told}\n", _unsaved(view))
    return ChoiceDialog("Stop the run", text, *choices, run=view.run.id)


def quiet_dialog(view: RunView) -> ChoiceDialog:
    """The question whether a run that quiet hours pause goes on without them."""
    return ChoiceDialog(
        "Quiet hours",
        f"{one_line(view.run.id, 60)} is paused: {one_line(view.state.reason, 100)}. It goes on by itself then.",
        Choice("y", YES, "lift them and go on", "for this run only"),
        Choice("escape", "", "wait"),
        run=view.run.id,
    )


def stop_now_dialog(view: RunView) -> ChoiceDialog:
    """The question before a run is stopped without a checkpoint, with the steps that would be lost."""
    text = Content.assemble((one_line(view.run.id, 60), "bold"), " saves nothing when it stops.\n", _unsaved(view))
    return ChoiceDialog(
        "Stop without a checkpoint",
        text,
        Choice("n", "", "keep training"),
        Choice("y", YES, "stop it", "these steps are lost"),
        alarm=True,
        run=view.run.id,
    )


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
        "Kill the process", text, Choice("n", "", "leave it alone"), Choice("y", YES, "kill it"), alarm=True
    )


def delete_dialog(run: Run, state: RunState, size: int | None) -> ChoiceDialog:
    """The question before a run is deleted.

    Args:
        run: The run.
        state: Its state.
        size: Its bytes on the disk; None if unknown.
    """
    held = (
        ("the checkpoints", bool(complete_checkpoints(run))),
        ("the adapter", run.adapter_path.is_dir()),
        ("the model", run.model_path.is_dir()),
    )
    what = ["the record", *(name for name, is_there in held if is_there)]
    listed = f"{', '.join(what[:-1])} and {what[-1]}" if len(what) > 1 else what[0]
    steps = f" at step {state.step} of {state.total_steps}" if state.total_steps else ""
    text = Content.assemble(
        (one_line(run.id, 60), "bold"),
        f" {in_words(state.state)}{steps}.\n",
        f"{f'It holds {format_bytes(size)}' if size is not None else 'It holds'}: {listed}.",
    )
    choices = [
        Choice("n", "", "keep it"),
        Choice("y", YES, "move it to the trash", "can be restored, and takes up disk space until the trash is emptied"),
        Choice("d", FOR_GOOD, "delete it for good", "frees the disk space at once"),
    ]
    return ChoiceDialog("Delete the run", text, *choices, alarm=True)


def unanswered_dialog(error: UserError) -> ChoiceDialog:
    """The question about a run that does not respond to a stop."""
    return ChoiceDialog(
        "Could not stop",
        error_text(error),
        Choice("t", SIGNAL, "send it a signal", "it stops after a checkpoint, if it can"),
        Choice("k", KILL, "kill its process", "asks once more"),
        Choice("escape", "", "leave it alone"),
        alarm=True,
    )


def _unsaved(view: RunView) -> str:
    """The loss of a stop without a checkpoint now."""
    step, saved = view.step, view.saved_step
    if not step:
        return "No step is done yet."
    if saved is None:
        return f"Not saved so far: all {step} steps; there is no checkpoint yet."
    if step <= saved:
        return f"Step {saved} is saved, and is the last one done so far."
    count = step - saved
    return f"Not saved so far: {count} {'step' if count == 1 else 'steps'} after the checkpoint of step {saved}."


def elsewhere_dialog(run: str, code: str, *, is_model: bool) -> ChoiceDialog:
    """Instructions for using a run's result outside the app.

    Args:
        run: The run's id.
        code: Python code that loads it.
        is_model: The result is a whole model, not an adapter.
    """
    text = Content.assemble(
        ("From a shell:\n", "$muted"),
        f"localtune-tui chat {one_line(run, 100)}",
        ("\n\nIn Python, with Transformers:\n" if is_model else "\n\nIn Python, with PEFT:\n", "$muted"),
        sanitize(code),
    )
    choices = [
        Choice("c", COPY_CODE, "copy the Python code"),
        Choice("p", COPY_PATH, f"copy the path of the {'model' if is_model else 'adapter'}"),
        Choice("escape", "", "back"),
    ]
    return ChoiceDialog("Use it elsewhere", text, *choices, is_harmless=True)


class ErrorDialog(ChoiceDialog):
    """The error of a user's request, with its hint.

    Args:
        title: The subject.
        error: The error.
    """

    def __init__(self, title: str, error: UserError) -> None:
        super().__init__(title, error_text(error), Choice("enter", "", "close"), Choice("y", _COPY, "copy"), alarm=True)
        self._error = error

    def dismiss(self, result: str | None = None) -> AwaitComplete:
        """Close it; copies the error if the user asked for that."""
        if result == _COPY:
            self.notify(copy_text(self, str(self._error), "the error"), markup=False)
        return super().dismiss(result)


def error_text(error: UserError) -> Content:
    """The message of an error, with its hint below."""
    text = Content(sanitize(error.message))
    return Content.assemble(text, "\n\n", (sanitize(error.hint), "$muted")) if error.hint else text


def queue_dialog(view: RunView, name: str) -> ChoiceDialog:
    """The question about a run that cannot start because another run is live.

    Args:
        view: The live run.
        name: The subject of the run that cannot start.
    """
    text = Content.assemble(
        (one_line(view.run.id, 60), "bold"),
        f" is {view.state.state}, and two do not fit on one device.\n",
        (one_line(name, 60), "bold"),
        " can wait in the queue, with its current values.",
    )
    return ChoiceDialog(
        "Another run is live",
        text,
        Choice("plus", ADD, "add it to the queue", "it starts by itself, with or without the app"),
        Choice("escape", "", "leave it"),
    )
