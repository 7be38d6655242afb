"""Dialog of a download from a hub; no connection is made before the user agrees."""

from __future__ import annotations

import threading
from collections.abc import Container

from textual import events, on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content

from core.hub.job import FetchPlan, fetch_job, hub_host
from core.hub_uri import HubEntry
from core.jobs.job import JobProgress
from core.text import one_line, sanitize
from core.units import format_bytes
from tui.screens.choice import Choice, Dialog, choice_lines
from tui.screens.dialogs import error_text
from tui.screens.job import Ended, Progressed, follow, progress_bar
from tui.shell import shell_of
from tui.widgets.text_block import TextBlock

#: Bytes from which the size needs a question of its own.
LARGE = 100_000_000


class FetchDialog(Dialog[bool]):
    """Confirmation and progress of a download; returns True once it is complete.

    Args:
        entry: The entry to download.
        why: The reason for the download, as a sentence.
        asks_size: Always ask for confirmation of the size, however small.
    """

    def __init__(self, entry: HubEntry, why: str, *, asks_size: bool = False) -> None:
        super().__init__()
        self._least_asked = 0 if asks_size else LARGE
        self._job = fetch_job(entry, self._confirm)
        self._entry = entry
        self._why = why
        self._answers: dict[str, str] = {}
        self._answered = threading.Event()

    def compose(self) -> ComposeResult:
        """A text and its keys."""
        with VerticalScroll() as box:
            box.border_title = Content("Download")
            yield TextBlock(id="fetch-text")
            yield TextBlock(id="choices")

    def on_mount(self) -> None:
        """Ask before any connection is made."""
        host = hub_host()
        text = Content.assemble(
            f"{one_line(self._why, 400)}\n\n",
            "It can be downloaded from ",
            (host, "bold"),
            ", which then sees your address, what you ask for and, only if it demands one, your token.",
        )
        self._show(
            text, Choice("y", "connect", "connect and ask how large it is"), Choice("escape", "leave", "leave it")
        )

    def on_unmount(self) -> None:
        """Cancel a running download; the partial files are kept."""
        self._job.close()
        self._answered.set()

    def _show(self, text: Content, *choices: Choice, alarm: bool = False) -> None:
        self.set_class(alarm, "-alarm")
        self._answers = {choice.key: choice.value for choice in choices}
        self.query_one("#fetch-text", TextBlock).show(text)
        self.query_one("#choices", TextBlock).show(choice_lines(choices))

    @property
    def known_keys(self) -> Container[str]:
        """Keys that answer the question."""
        return self._answers

    def on_key(self, event: events.Key) -> None:
        """Handle the offered keys; enter, which may still be down from the prompt before, agrees to nothing."""
        answer = self._answers.get(event.key)
        if answer is None:
            return
        event.stop()
        event.prevent_default()
        if answer == "connect":
            self._show(Content(f"Asking {hub_host()} …"), Choice("escape", "leave", "cancel"))
            follow(self, self._job.run)
        elif answer == "go":
            self._show(Content("Starting the download …"), Choice("escape", "leave", "cancel"))
            self._answered.set()
        else:
            self.dismiss(False)

    def _confirm(self, plan: FetchPlan) -> bool:
        """Ask about a large download; called in the thread of the download."""
        if plan.remaining >= self._least_asked:
            self.post_call(self._proposed, plan)
            self._answered.wait()
        return True

    def _proposed(self, plan: FetchPlan) -> None:
        files = "1 file" if plan.files == 1 else f"{plan.files} files"
        rest = "" if plan.remaining == plan.bytes else f"; {format_bytes(plan.bytes - plan.remaining)} are here already"
        text = f"{self._entry} is {files}, {format_bytes(plan.bytes)}{rest}.\n{plan.reason}"
        self._show(Content(sanitize(text)), Choice("y", "go", "download it"), Choice("escape", "leave", "leave it"))

    @on(Progressed)
    def _progressed(self, message: Progressed[JobProgress]) -> None:
        progress = message.progress
        if "y" in self._answers:
            return  # a question is open
        stage = one_line(progress.activity, 64)
        if progress.done is None or progress.total is None or progress.share is None:
            self._show(Content(f"{stage} …"), Choice("escape", "leave", "cancel"))
            return
        text = Content.assemble(
            progress_bar(progress.share, shell_of(self).glyphs),
            f" {progress.share:4.0%}\n",
            f"{format_bytes(progress.done)} of {format_bytes(progress.total)}\n",
            (stage, "$muted"),
        )
        self._show(text, Choice("escape", "leave", "cancel; what has come is kept"))

    @on(Ended)
    def _ended(self, message: Ended[FetchPlan]) -> None:
        if message.error is None:
            self.dismiss(True)
            return
        self._show(error_text(message.error), Choice("escape", "leave", "close"), alarm=True)
