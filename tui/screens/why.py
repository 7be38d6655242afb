"""Screens of the rows behind an answer: the form, the list, and the proof by training again without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import Screen

from core.attribution.job import (
    NO_ROWS,
    PROOF,
    SAME,
    AttributionJob,
    IndexJob,
    IndexResult,
    attribution_job,
    chosen_steps,
    index_job,
)
from core.attribution.result import ROWS_FOR, AttributedRow, Attribution, AttributionRequest
from core.errors import UserError
from core.jobs.job import JobProgress
from core.jobs.running import RunningJob
from core.proof import Proof, ProofView, begin_proof, view_proof
from core.runs.record.sentences import brief_id
from core.runs.record.store import find_run
from core.text import one_line, sanitize
from core.units import counted
from tui.glyphs import GlyphSet
from tui.jobs import JobPage
from tui.keys import bindings
from tui.screens.box import OverlayBox, RecordBox
from tui.screens.job import progress_text
from tui.screens.overlay import Overlay, key_line
from tui.screens.queue import LOOK_SECONDS
from tui.shell import shell_of
from tui.widgets.charts.bars import bar
from tui.widgets.forms.inputs import PromptInput
from tui.widgets.lists.choice_list import PointedList
from tui.widgets.strips import style_of
from tui.widgets.text_block import HangingBlock, TextBlock, side_by_side

if TYPE_CHECKING:
    from core.analysis.problems import FileLine
    from core.runs.record.store import Run
    from tui.messages import AskWhy

#: Cells of the longest bar, and characters of an answer before its first word that matters, where its end is cut.
_BAR, _LEAD = 10, 12
#: Columns from which the answers of a proof are put side by side, and the gap between them.
_BESIDE, _GAP = 100, Content("  ")

_FORM_KEYS = (("enter", "ask"), ("^n", "line break"), ("^r", "proofs"), ("esc", "leave"))


class WhyForm(Overlay[str]):
    """Form that asks for the answer that should have been given; returns it, empty for none.

    Args:
        asked: The question with its answer.
        wanted: The text to begin with.
        proofs: Shows the proofs of the run.
        is_on: A run is live, which the search slows down.
    """

    DEFAULT_CSS = style_of("WhyForm")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "leave", show=False, priority=True),
        # With priority, as an empty prompt ignores the key.
        Binding("enter", "accept", "ask", show=False, priority=True),
        Binding("ctrl+r", "proofs", "proofs", show=False, priority=True),
    ]
    AUTO_FOCUS = "PromptInput"
    HELP = "why_form"
    TAKES_TEXT = True

    def __init__(self, asked: AskWhy, wanted: str, proofs: Callable[[], object], *, is_on: bool = False) -> None:
        super().__init__()
        self._asked, self._wanted, self._proofs, self._is_on = asked, wanted, proofs, is_on

    def compose(self) -> ComposeResult:
        """Question and answer, the wanted answer, and the keys."""
        asked = self._asked
        at = f"  (step {asked.step})" if asked.step is not None else ""
        with Vertical() as box:
            box.border_title = Content("Why did it say that?")
            texts = (("question", asked.messages[-1]["content"]), ("answer", f"{asked.answer}{at}"))
            yield HangingBlock(Content("\n").join(Content(f"{name:<8}  {one_line(text, 400)}") for name, text in texts))
            yield TextBlock(Content("It should have said (may be left empty):"), id="label")
            yield PromptInput()
            if self._is_on:
                yield TextBlock(Content.styled("A run is live: the search takes memory and time from it.", "$near"))
            yield TextBlock(key_line(_FORM_KEYS), id="keys")

    def on_mount(self) -> None:
        """Begin with the wanted answer as far as it is known."""
        prompt = self.query_one(PromptInput)
        prompt.load_text(sanitize(self._wanted))
        prompt.move_cursor(prompt.document.end)

    def action_accept(self) -> None:
        """Return the wanted answer; an unedited one as it was, not as sanitized for the prompt."""
        text = self.query_one(PromptInput).text
        self.dismiss(self._wanted.strip() if text == sanitize(self._wanted) else text.strip())

    def action_proofs(self) -> None:
        """Show the proofs of the run instead."""
        self.dismiss(None)
        self._proofs()


class WhyWays(Protocol):
    """The ways that lead on from a list of rows."""

    def go_to(self, row: AttributedRow) -> None:
        """Go to a row in the Data pane."""

    def prove(self, found: Attribution, row: AttributedRow) -> None:
        """Ask for the rows to leave out, and train again without them.

        Args:
            found: The list.
            row: The row under the cursor.
        """

    def make_index(self) -> None:
        """Make the index of the run."""

    def ask_otherwise(self, wanted: str) -> None:
        """Ask again with another wanted answer, beginning with a text."""

    def show_proofs(self) -> None:
        """Show the proofs of the run."""


class WhyPage(JobPage[JobProgress, Attribution]):
    """The search for the rows behind an answer, whose list has a screen of its own.

    Args:
        request: The question.
        name: The name of the run.
        ways: The ways that lead on from the list.
    """

    def __init__(self, request: AttributionRequest, name: str, ways: WhyWays) -> None:
        super().__init__(RunningJob("search for rows", name), "Why it said that")
        self.request, self._ways = request, ways
        self._search: AttributionJob | None = None

    def run(self, tell: Callable[[JobProgress], None]) -> Attribution:
        """Find the rows."""
        self._search = attribution_job(self.request)
        parts, part, before = 1 + len(chosen_steps(find_run(self.request.run), self.request.step)), 0, 0.0

        def told(progress: JobProgress) -> None:
            # The rows are read, and their gradients computed at each checkpoint: each begins at 0 again.
            nonlocal part, before
            if (share := progress.share) is not None:
                part, before = part + (share < before), share
                progress = JobProgress(progress.activity, round(1_000 * min((part + share) / parts, 1)), 1_000)
            tell(progress)

        return self._search.run(told)

    def close(self) -> None:
        """End its process."""
        if self._search is not None:
            self._search.close()

    def outcome(self) -> str:
        """The first row."""
        if (found := self.job.result) is None:
            return ""
        return f"{place_of(found.rows[0])} comes first." if found.rows else NO_ROWS

    def text(self, room: int, glyphs: GlyphSet) -> Content:  # noqa: ARG002
        """Question and answer, and the progress."""
        request = self.request
        texts = (("question", request.messages[-1]["content"]), ("answer  ", request.answer))
        wanted = (("wanted  ", request.wanted),) if request.wanted else ()
        lines = [Content(f"{name}  {one_line(text, 300)}") for name, text in (*texts, *wanted)]
        return Content("\n").join([*lines, Content(""), progress_text(self.job, glyphs)])

    def result_screen(self) -> Screen[None] | None:
        """The list."""
        return WhyScreen(self.job.result, self._ways) if self.job.result is not None else None


class IndexPage(JobPage[JobProgress, IndexResult]):
    """The index of a run's rows, which is kept in the run.

    Args:
        run: The run.
        step: The step whose answers are traced; None for the result.
        ask: Asks again.
    """

    takes = "ask again"

    def __init__(self, run: Run, step: int | None, ask: Callable[[], object]) -> None:
        super().__init__(RunningJob("index", brief_id(run.id), expected=None), "Index of all rows")
        self._run, self._step, self._ask = run, step, ask
        self._making: IndexJob | None = None

    @property
    def keeps(self) -> str:
        """The parts of it that are kept if it is ended now."""
        return "finished rows are kept, and the next attempt goes on with them"

    def run(self, tell: Callable[[JobProgress], None]) -> IndexResult:
        """Make the index."""
        self._making = index_job(self._run, self._step)
        return self._making.run(tell)

    def close(self) -> None:
        """End its process."""
        if self._making is not None:
            self._making.close()

    def take(self) -> None:
        """Ask again, of all rows."""
        self._ask()

    def outcome(self) -> str:
        """The rows in it, and its size."""
        from core.commands.why import index_line

        return f"The index is there: {index_line(self.job.result)}" if self.job.result is not None else ""

    def text(self, room: int, glyphs: GlyphSet) -> Content:  # noqa: ARG002
        """The progress, or the result."""
        if self.job.result is not None:
            return Content(self.outcome())
        about = (
            "Gradients of all rows, kept in the run: the lists of all its answers are exact then. "
            "With checkpoint.index the queue makes it after a run.\n\n"
        )
        return Content(about) + progress_text(self.job, glyphs)


@dataclass(frozen=True)
class LeftOut:
    """Rows to leave out, and the question that is asked afterwards."""

    run: Run
    rows: tuple[FileLine, ...]
    messages: Sequence[Mapping[str, str]]
    wanted: str


class ProofPage(JobPage[JobProgress, Proof]):
    """The preparation of a proof: siblings of the question are asked, and its two runs are queued.

    Args:
        left_out: The rows to leave out.
    """

    def __init__(self, left_out: LeftOut) -> None:
        about = f"{brief_id(left_out.run.id)} without {counted(len(left_out.rows), 'row')}"
        super().__init__(RunningJob("proof", about), "Proof by training again")
        self._left_out, self._trouble = left_out, ""

    def run(self, tell: Callable[[JobProgress], None]) -> Proof:
        """Ask the siblings, add both runs to the queue, and start it."""
        from core.queue.status import start_runner

        asked = self._left_out
        proof = begin_proof(asked.run, asked.rows, asked.messages, wanted=asked.wanted, progress=tell)
        try:
            start_runner()
        except UserError as error:
            # The runs stay in the queue, and can be started there.
            self._trouble = f"The queue is not started: {error.message}"
        return proof

    def outcome(self) -> str:
        """The entries of the queue."""
        if (proof := self.job.result) is None:
            return ""
        entries = f"Entries {proof.entries[0]} and {proof.entries[1]} of the queue train without them."
        return f"{entries} {self._trouble}".rstrip()

    def text(self, room: int, glyphs: GlyphSet) -> Content:  # noqa: ARG002
        """The rows, and the progress."""
        names = ", ".join(f"{row.file}:{row.line}" for row in self._left_out.rows)
        return Content(f"without  {one_line(names, 300)}\n\n") + progress_text(self.job, glyphs)

    def result_screen(self) -> Screen[None] | None:
        """The view of the proof."""
        proof = self.job.result
        return ProofScreen(self._left_out.run, proof, self._trouble) if proof is not None else None


# The list.


def place_of(row: AttributedRow) -> str:
    """A row by file and line."""
    return f"{one_line(row.file, 60)}:{row.line}"


def group_of(found: Attribution) -> str:
    """The rows up to the gap in the scores, in words."""
    shown = min(len(found.rows), ROWS_FOR)
    if found.like == 1:
        return "the first row"
    if found.like > shown:
        return f"these rows and their like ({found.like})"
    return f"these {shown} rows" if found.like == shown else f"the first {found.like} of these rows"


def head_of(found: Attribution) -> Content:
    """The answers in question; first of all that the base gives the same one, if it does."""
    lines = [Content.styled(SAME, "$near bold")] if found.is_base else []
    answers = [("answer", found.answer), *([] if found.is_base else [("base", found.base)])]
    answers += [("wanted", found.wanted)] if found.wanted else []
    lines += [Content.assemble((f"{name:<8}", "$muted"), one_line(text.strip(), 200) or "–") for name, text in answers]
    return Content("\n").join(lines)


def row_lines(row: AttributedRow, width: int, glyphs: GlyphSet, places: int = 0) -> Content:
    """Two lines of a row: bar, place and question, then the answer with the words that matter.

    Args:
        row: The row.
        width: Columns of a line.
        glyphs: The glyphs to draw with.
        places: Columns of the places of all rows.
    """
    full, empty = bar(abs(row.score), _BAR, glyphs)
    if not full:
        full, empty = glyphs.bar_full, empty[1:]
    style = "$primary" if row.score > 0 else "$limit"
    head = Content.assemble((full, style), (empty, "$muted"), "  ", (place_of(row).ljust(places), "bold"), "  ")
    first = (head + one_line(row.question, 400)).truncate(max(width, 8), ellipsis=True)
    indent = " " * (_BAR + 2)
    return Content("\n").join([first, indent + lit_answer(row, max(width - _BAR - 2, 8))])


def lit_answer(row: AttributedRow, width: int) -> Content:
    """The answer of a row in a line, with the words that matter most underlined; a long one begins shortly before them.

    Args:
        row: The row.
        width: Columns of the line.
    """
    safe = one_line(row.answer, len(row.answer))
    words = row.words if safe == row.answer else ()
    text = Content(safe)
    for begin, end in words:
        text = text.stylize("$primary bold underline", begin, end)
    first = words[0] if words else (0, 0)
    if first[1] >= width:
        text = "…" + text[max(first[0] - _LEAD, 0) :]
    return text.truncate(width, ellipsis=True)


class WhyScreen(Overlay[None]):
    """Rows that pull an answer toward its words, and rows that pull it away.

    Args:
        found: The rows.
        ways: The ways that lead on.
    """

    DEFAULT_CSS = style_of("WhyScreen")
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("why")]
    AUTO_FOCUS = "PointedList"
    SCOPE = "why"

    def __init__(self, found: Attribution, ways: WhyWays) -> None:
        super().__init__()
        self._found, self._ways = found, ways
        self._listed: list[AttributedRow | str] = ["Rows for it", *found.rows[:ROWS_FOR]]
        self._listed += ["Rows against it", *found.against] if found.against else []

    def compose(self) -> ComposeResult:
        """The answers, the rows, and the way to prove it."""
        with RecordBox("Why it said that"):
            yield HangingBlock(head_of(self._found), id="head")
            yield PointedList()
            yield TextBlock(id="proof")

    def on_resize(self) -> None:
        """Fit the rows to the width, which is known after the layout."""
        self.call_after_refresh(self._fit)

    def _fit(self) -> None:
        if not self.query(PointedList):
            return
        found, shell, options = self._found, shell_of(self), self.query_one(PointedList)
        width = options.size.width - 3  # pointer and scrollbar
        places = max((len(place_of(row)) for row in (*found.rows[:ROWS_FOR], *found.against)), default=0)
        entries = [
            Content.styled(entry, "bold") if isinstance(entry, str) else row_lines(entry, width, shell.glyphs, places)
            for entry in self._listed
        ]
        before = options.highlighted
        if not found.rows:
            entries[0] = Content(NO_ROWS)
        options.fill(entries, {at for at, entry in enumerate(self._listed) if isinstance(entry, str)})
        options.highlighted = before if before is not None else (1 if len(entries) > 1 else None)
        keys = shell.keys
        lines = []
        if found.rows:
            lines += [Content(PROOF), key_line([(keys["why.start"].display, f"train again without {group_of(found)}")])]
        if found.considered < found.total:
            more = f"{found.considered} of {found.total} rows were compared, chosen by their hidden states; "
            lines.append(Content.assemble((more, "$muted"), key_line([(keys["why.index"].display, "compares all")])))
        self.query_one("#proof", TextBlock).show(Content("\n").join(lines))
        # The others are below the rows, with their effect.
        names = [name for name in ("open", "proofs", "edit", "back") if name != "open" or len(self._listed) > 1]
        self.query_one(RecordBox).show_hints(keys.named(f"why.{name}" for name in names))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable actions on rows without any, and the index where all rows were compared."""
        if (action == "prove" and not self._found.rows) or (action == "open" and len(self._listed) < 2):
            return False
        if action == "index" and self._found.considered >= self._found.total:
            return False
        return super().check_action(action, parameters)

    @property
    def _row(self) -> AttributedRow | None:
        """The row under the cursor."""
        place = self.query_one(PointedList).highlighted
        row = self._listed[place] if place is not None else None
        return None if isinstance(row, str) else row

    def take(self) -> None:
        """Go to the row under the cursor."""
        self.action_open()

    def action_open(self) -> None:
        """Go to the row under the cursor, in the Data pane."""
        if (row := self._row) is not None:
            self._ways.go_to(row)

    def action_prove(self) -> None:
        """Train again without rows."""
        if (row := self._row) is not None:
            self._ways.prove(self._found, row)

    def action_index(self) -> None:
        """Make the index of all rows."""
        self._ways.make_index()

    def action_edit(self) -> None:
        """Ask again with another wanted answer; where none was wanted, beginning with that of the base."""
        found = self._found
        self._ways.ask_otherwise(found.wanted or ("" if found.is_base else found.base))

    def action_proofs(self) -> None:
        """Show the proofs of the run."""
        self._ways.show_proofs()

    def action_move(self, rows: int) -> None:
        """Move the cursor."""
        self.query_one(PointedList).move(rows)


# The proof.


class ProofScreen(Overlay[None]):
    """A proof: its two runs as far as they have come, then the answers side by side.

    Args:
        run: The original run.
        proof: The proof.
        trouble: The reason why the queue was not started, shown while a run waits; empty if it was.
    """

    HELP = "proof"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter", "dismiss(None)", show=False)]

    def __init__(self, run: Run, proof: Proof, trouble: str = "") -> None:
        super().__init__()
        self._run, self._proof, self._trouble = run, proof, trouble
        self._view: ProofView | None = None
        self._text = HangingBlock()

    def compose(self) -> ComposeResult:
        """The empty box; the text follows once the runs have been read."""
        box = OverlayBox(self._text, title=f"Proof: {brief_id(self._run.id)} trained again", width=160, tight=True)
        box.show_keys("j k scroll  esc close")
        yield box

    def on_mount(self) -> None:
        """Look at the runs every few seconds, until they have answered."""
        self._look()
        self.set_interval(LOOK_SECONDS * shell_of(self).pace, self._look_again)

    def _look_again(self) -> None:
        if self._view is None or self._view.state in ("queued", "running"):
            self._look()

    @work(thread=True, group="queue-look", exclusive=True)
    def _look(self) -> None:
        self.post_call(self._show, view_proof(self._run, self._proof))

    def _show(self, view: ProofView) -> None:
        self._view = view
        self.on_resize()

    def on_resize(self) -> None:
        """Lay the answers out for the width."""
        if self._view is not None:
            text = proof_text(self._view, self.query_one(OverlayBox).room)
            if self._trouble and "queued" in (self._view.without.state, self._view.control.state):
                text = Content("\n\n").join([text, Content.styled(self._trouble, "$near")])
            self._text.show(text)


def proof_text(view: ProofView, room: int) -> Content:
    """A proof: its rows, and the state of its runs or the answers.

    Args:
        view: The proof with its runs.
        room: Columns of a line; with enough of them, answers are side by side.
    """
    proof = view.proof
    lines = [
        Content.assemble((f"{name:<11}", "$muted"), one_line(", ".join(rows), 300))
        for name, rows in (("left out", proof.rows), ("at random", proof.control))
    ]
    lines.append(Content(""))
    if not view.compared:
        column = max(len(view.without.title), len(view.control.title))
        lines += [Content(f"{each.title:<{column}}  {each.words}") for each in (view.without, view.control)]
        asked = counted(len(proof.questions), "question")
        kept = f"Both are trained as the run was and answer {asked}. The proof is kept in the run; ^r shows it."
        if view.state == "failed":
            kept = "There is nothing to compare. The list of the rows begins another proof."
        return Content("\n").join([*lines, Content(""), Content(kept)])
    lines += [Content.styled(view.summary, "bold"), Content.styled("*  differs from the answer of the run", "$muted")]
    titles = ("with all rows", view.without.title, view.control.title)
    for row in view.compared:
        lines += [Content(""), Content.styled(one_line(row.question, 300), "bold")]
        if row.expected is not None:
            lines.append(Content.assemble(("wanted  ", "$muted"), one_line(row.expected, 300)))
        answers = (row.original, row.without, row.control)
        changed = (False, row.is_changed, row.is_noisy)
        heads = [f"{'* ' if differs else '  '}{title}" for title, differs in zip(titles, changed, strict=True)]
        styles = ["$primary" if differs else "" for differs in changed]
        if room >= _BESIDE:
            width = (room - 2 * len(_GAP)) // 3
            columns = [
                [Content.styled(head, "$muted"), *Content.styled(sanitize(answer.strip()) or "–", style).wrap(width)]
                for head, answer, style in zip(heads, answers, styles, strict=True)
            ]
            lines += side_by_side(columns, width, _GAP)
        else:
            column = max(map(len, titles)) + 4
            lines += [
                Content.assemble((head.ljust(column), "$muted"), (one_line(answer.strip(), 1_000) or "–", style))
                for head, answer, style in zip(heads, answers, styles, strict=True)
            ]
    return Content("\n").join(lines)
