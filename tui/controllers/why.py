"""Controller of the rows behind answers: questions, lists, indexes, and proofs by training again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.paths import working_directory
from core.text import one_line
from core.units import counted, format_moment
from tui.controllers.jobs import Jobs
from tui.files import entry_path
from tui.main_screen import Desktop

if TYPE_CHECKING:
    from core.analysis.problems import FileLine
    from core.attribution.result import AttributedRow, Attribution
    from core.proof import Proof
    from core.runs.record.store import Run
    from tui.jobs import JobPage
    from tui.messages import AskWhy
    from tui.screens.choice import ChoiceDialog
    from tui.screens.why import WhyPage


class Why:
    """Controller of the rows behind answers. A list stays until the app ends: asked again, it is there at once.

    Args:
        desktop: The screens and notices, and the panes.
        jobs: The jobs.
    """

    def __init__(self, desktop: Desktop, jobs: Jobs) -> None:
        self._desktop, self._jobs = desktop, jobs
        self._pages: dict[tuple[Any, ...], WhyPage] = {}

    def ask(self, asked: AskWhy) -> None:
        """Show the list of an answer, or the form that begins its search."""
        page = self._pages.get(_key(asked))
        if page is None or page.job.stage == "canceled" or page.job.is_ending or page.job.error is not None:
            self.ask_anew(asked, asked.wanted if page is None else page.request.wanted)
        else:
            self._jobs.open(page)

    def ask_anew(self, asked: AskWhy, wanted: str) -> None:
        """Open the form of the wanted answer, and then begin the search.

        Args:
            asked: The question.
            wanted: The text that the form begins with.
        """
        from core.attribution.job import refuse_run
        from tui.screens.why import WhyForm

        try:
            refuse_run(asked.run)
        except UserError as error:
            self._desktop.fail("Its rows cannot be found", error)
            return

        def answered(text: str | None) -> None:
            if text is not None:
                self.search(asked, text)

        state = self._desktop.state
        is_on = state.live_run is not None or bool(state.other_live)
        self._desktop.open(WhyForm(asked, wanted, partial(self.show_proofs, asked.run), is_on=is_on), answered)

    def search(self, asked: AskWhy, wanted: str) -> None:
        """Begin the search for the rows, once the chat has freed its memory, in place of an open list."""
        from core.attribution.result import AttributionRequest
        from core.runs.record.sentences import brief_id
        from tui.screens.why import WhyPage, WhyScreen

        if (former := self._desktop.find_screen(WhyScreen)) is not None:
            former.dismiss(None)
        request = AttributionRequest(str(asked.run.path), tuple(asked.messages), asked.answer, wanted, asked.step)
        page = WhyPage(request, brief_id(asked.run.id), _Ways(self, asked, wanted))
        self._pages[_key(asked)] = page
        self.begin(page)

    def begin(self, page: JobPage[Any, Any]) -> None:
        """Begin a job that loads a model, once the chat has freed its memory, and show it."""

        async def work() -> None:
            if (pane := self._desktop.panes.chat) is not None:
                await pane.release()
            self._jobs.begin(page)
            self._jobs.open(page)

        self._desktop.run(work, "why")

    def open(self, screen: ChoiceDialog, answered: Callable[[str | None], None]) -> None:
        """Ask a question."""
        self._desktop.open(screen, answered)

    def go_to(self, run: Run, row: AttributedRow) -> None:
        """Go to a row in the Data pane; the list stays for when it is asked for again."""
        from core.analysis.problems import FileLine

        async def work() -> None:
            try:
                found = await asyncio.to_thread(_find, run, FileLine(row.file, row.line))
            except UserError as error:
                self._desktop.fail("The row cannot be shown", error)
                return
            if (pane := self._desktop.panes.data) is not None:
                self._desktop.uncover()
                self._desktop.show_pane("data")
                pane.go_to_row(*found)

        self._desktop.run(work, "why")

    def show_proofs(self, run: Run) -> None:
        """Show the proof of a run, or a list of them to choose from."""

        async def work() -> None:
            from core.proof import list_proofs
            from tui.screens.pick import Pick, PickScreen
            from tui.screens.why import ProofScreen

            proofs = {proof.id: proof for proof in await asyncio.to_thread(list_proofs, run)}
            if len(proofs) == 1:
                self._desktop.open(ProofScreen(run, next(iter(proofs.values()))))
            elif not proofs:
                self._desktop.tell("This run has no proofs yet; one begins from the list of an answer's rows.")
            else:
                picks = [Pick(proof.id, _about(proof), proof.questions[0].question) for proof in proofs.values()]

                def chosen(identity: str | None) -> None:
                    if identity in proofs:
                        self._desktop.open(ProofScreen(run, proofs[identity]))

                self._desktop.open(PickScreen("Proofs of this run", picks), chosen)

        self._desktop.run(work, "why")


class _Ways:
    """The ways that lead on from the list of an answer.

    Args:
        why: The controller.
        asked: The question.
        wanted: The answer that was wanted; empty for none.
    """

    def __init__(self, why: Why, asked: AskWhy, wanted: str) -> None:
        self._why, self._asked, self._wanted = why, asked, wanted

    def go_to(self, row: AttributedRow) -> None:
        """Go to a row in the Data pane."""
        self._why.go_to(self._asked.run, row)

    def prove(self, found: Attribution, row: AttributedRow) -> None:
        """Ask for the rows to leave out, and train again without them."""
        from core.analysis.problems import FileLine
        from core.attribution.result import ROWS_FOR
        from tui.screens.choice import Choice, ChoiceDialog
        from tui.screens.why import LeftOut, ProofPage, group_of, place_of

        shown = found.rows[:ROWS_FOR]
        groups = {"l": found.rows[: found.like], "o": shown, "c": (row,)}
        choices = [
            Choice("l", "l", f"without {group_of(found)}", "up to the gap in the scores"),
            Choice("o", "o", f"without the {counted(len(shown), 'row')} listed for it"),
            Choice("c", "c", "without the one under the cursor", place_of(row)),
        ]
        # The first of two that leave out the same rows.
        choices = [each for at, each in enumerate(choices) if groups[each.key] not in [*groups.values()][:at]]
        text = (
            "Train again without which rows? Two runs go into the queue: one without them, and one without as many "
            "random rows. The order of the others stays, so they differ in nothing else. No file is changed."
        )

        def answered(answer: str | None) -> None:
            if answer:
                places = tuple(FileLine(each.file, each.line) for each in groups[answer])
                asked = self._asked
                self._why.begin(ProofPage(LeftOut(asked.run, places, asked.messages, self._wanted)))

        self._why.open(ChoiceDialog("Proof by training again", text, *choices, is_harmless=True), answered)

    def make_index(self) -> None:
        """Make the index of the run, and ask again from there."""
        from tui.screens.why import IndexPage

        self._why.begin(
            IndexPage(self._asked.run, self._asked.step, partial(self._why.search, self._asked, self._wanted))
        )

    def ask_otherwise(self, wanted: str) -> None:
        """Ask again with another wanted answer."""
        self._why.ask_anew(self._asked, wanted)

    def show_proofs(self) -> None:
        """Show the proofs of the run."""
        self._why.show_proofs(self._asked.run)


def _key(asked: AskWhy) -> tuple[Any, ...]:
    """Run and step, conversation and answer."""
    messages = tuple((each["role"], each["content"]) for each in asked.messages)
    return str(asked.run.path), asked.step, messages, asked.answer


def _about(proof: Proof) -> str:
    """Time of a proof, and the number of rows that it leaves out."""
    return f"{format_moment(proof.created, '%d %B %H:%M')}, without {counted(proof.count, 'row')}"


def _find(run: Run, place: FileLine) -> tuple[Path, int]:
    """File and number of a row of a run, as the Data pane opens it; blocks.

    Raises:
        UserError: If the run's data do not have it.
    """
    from core.analysis.result import request_for
    from core.analysis.row_samples import find_row

    found = find_row(request_for(run.config(), model=None), place)
    if found is None:
        raise UserError(f"The data of {run.id} have no {one_line(f'{place.file}:{place.line}', 100)} any more.")
    return entry_path(found[0], working_directory()), found[1]
