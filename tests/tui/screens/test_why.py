"""The rows behind an answer: form, list, index and proof, driven by keys."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.content import Content

from core.analysis.problems import FileLine
from core.attribution.job import PROOF, IndexResult
from core.attribution.result import AttributedRow, Attribution, AttributionRequest
from core.errors import UserError
from core.evaluation.prompt_set import PromptItem
from core.jobs.job import JobProgress
from core.models.architecture import measuring
from core.proof import Proof, ProofRun, ProofView
from core.queue import store
from core.runs.catalog.rows import PROOFS
from core.runs.record.store import Run
from tests.core.attribution.test_job import make_run
from tests.core.worker.attribution.runs import trained
from tests.measured_here import run_here
from tests.tui.harness import FORBIDDEN, HOSTILE, pane_of, press, running, screen_lines, screen_text, shown, wait_for
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.glyphs import BRAILLE
from tui.messages import AskWhy
from tui.screens.job import JobScreen
from tui.screens.why import ProofScreen, WhyForm, WhyScreen, group_of, head_of, lit_answer, proof_text, row_lines
from tui.widgets.forms.inputs import PromptInput

QUESTION = ({"role": "user", "content": "ticket printer"},)
ROWS = tuple(
    AttributedRow("rows.jsonl", 10 + number, 1 - number / 10, f"question {number}", f"answer {number}", ((0, 6),))
    for number in range(7)
)
AGAINST = (AttributedRow("rows.jsonl", 3, -0.5, HOSTILE, HOSTILE),)
FOUND = Attribution("billing", "hardware", "I do not know", ROWS, AGAINST, 7, (15, 30), 300, 400)


# Drawing.


def test_the_same_answer_of_the_base_comes_first() -> None:
    lines = head_of(replace(FOUND, base="billing\n")).plain.splitlines()
    assert lines == [
        "The base model gives the same answer: training need not be behind it.",
        "answer  billing",
        "wanted  hardware",
    ]
    assert head_of(replace(FOUND, wanted="")).plain.splitlines() == ["answer  billing", "base    I do not know"]


def test_the_rows_up_to_the_gap_are_named() -> None:
    assert [group_of(replace(FOUND, like=like)) for like in (7, 5, 3, 1)] == [
        "these rows and their like (7)",
        "these 5 rows",
        "the first 3 of these rows",
        "the first row",
    ]


def test_bars_are_relative_to_the_first_row_and_never_empty() -> None:
    def cells(score: float) -> int:
        return row_lines(replace(ROWS[0], score=score), 80, BRAILLE).plain.count(BRAILLE.bar_full)

    assert [cells(score) for score in (1.0, 0.5, -0.5, 0.001)] == [10, 5, 5, 1]
    assert "rows.jsonl:10  question 0" in row_lines(ROWS[0], 80, BRAILLE).plain


def lit(content: Content) -> list[str]:
    return [content.plain[span.start : span.end] for span in content.spans if "underline" in str(span.style)]


def test_the_words_that_matter_are_underlined_and_in_sight() -> None:
    long = "x " * 200 + "password is wrong " + "y " * 100
    begin = long.index("password")
    row = replace(ROWS[0], answer=long, words=((begin, begin + 8), (begin + 12, begin + 17)))
    shown = lit_answer(row, 60)
    assert lit(shown) == ["password", "wrong"]
    assert shown.cell_length <= 60
    assert shown.plain.startswith("…")
    assert lit_answer(ROWS[0], 60).plain == "answer 0"
    assert all(line.cell_length <= 40 for line in row_lines(row, 40, BRAILLE).split("\n"))


QUESTIONS = (
    PromptItem("asked", ({"role": "user", "content": "which area?"},), "hardware"),
    PromptItem("sibling", ({"role": "user", "content": "and this one?"},)),
)
PROOF_OF = Proof("p", 1.0, ("rows.jsonl:1-2",), 2, ("rows.jsonl:9",), (), QUESTIONS, ("billing", "b"), (3, 4))
WITHOUT = ProofRun("without 2 rows", "done", "a", "finished", ("hardware", "b"))
CONTROL = ProofRun("without 2 random rows", "done", "b", "finished", ("billing", "c"))


def test_answers_of_a_proof_are_side_by_side_where_they_fit() -> None:
    view = ProofView(PROOF_OF, WITHOUT, CONTROL)
    wide = proof_text(view, 150).plain.splitlines()
    heads = next(line for line in wide if "with all rows" in line)
    assert heads.split("  ")[1] == "with all rows"
    assert "* without 2 rows" in heads
    assert "* without 2 random" not in heads
    assert wide[wide.index(heads) + 1].split() == ["billing", "hardware", "billing"]
    assert view.summary in wide
    narrow = proof_text(view, 70).plain
    assert "* without 2 rows         hardware" in narrow
    assert "  without 2 random rows  billing" in narrow
    assert "left out   rows.jsonl:1-2" in narrow


def test_runs_of_a_proof_are_named_until_they_have_answered() -> None:
    waiting = ProofRun("without 2 rows", "queued", words="entry 3 of the queue is waiting")
    text = proof_text(ProofView(PROOF_OF, waiting, CONTROL), 70).plain
    assert "without 2 rows         entry 3 of the queue is waiting" in text
    assert "without 2 random rows  finished" in text
    assert "answer 2 questions" in text
    text = proof_text(ProofView(PROOF_OF, replace(waiting, state="failed", words="removed"), CONTROL), 70).plain
    assert "without 2 rows         removed" in text
    assert "answer 2 questions" not in text


# Keys.


class FakeSearch:
    """A search that has found rows, or is refused."""

    def __init__(self, found: Attribution | UserError) -> None:
        self.found = found
        self.requests: list[AttributionRequest] = []

    def __call__(self, request: AttributionRequest) -> FakeSearch:
        self.requests.append(request)
        return self

    def run(self, tell: Any) -> Attribution:
        tell(JobProgress("gradients of the rows", 1, 2))
        if isinstance(self.found, UserError):
            raise self.found
        return self.found

    def close(self) -> None:
        pass


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> FakeSearch:
    made = FakeSearch(FOUND)
    monkeypatch.setattr("tui.screens.why.attribution_job", made)
    return made


def run_on(data: Path) -> Run:
    """A run that is over, on twenty rows, the first line of whose file is blank."""
    rows = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(20)]
    data.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))
    return make_run(15, 30, data={"train": str(data)})


def ask(app: LocaltuneApp, run: Run, wanted: str = "", step: int | None = None) -> None:
    app.post_message(AskWhy(run, step, QUESTION, "billing", wanted))


async def test_the_list_leads_to_the_row_in_its_file_and_is_there_at_once_again(
    search: FakeSearch, private_home: Path
) -> None:
    run = run_on(private_home.parent / "rows.jsonl")
    async with running() as (app, pilot):
        ask(app, run, "hardware", 15)
        await shown(pilot, "answer    billing  (step 15)", "It should have said", "hardware")
        await press(pilot, "enter", until=lambda: isinstance(app.screen, WhyScreen))
        assert search.requests == [AttributionRequest(str(run.path), QUESTION, "billing", "hardware", 15)]
        await shown(pilot, "base    I do not know", "▸ ", "rows.jsonl:10  question 0", PROOF[:40])
        await shown(
            pilot,
            "r train again without these rows and their like (7)",
            "300 of 400 rows were compared",
            "enter its place",
        )
        assert "question 5" not in screen_text(app), "five rows"
        text = "".join(screen_lines(app)[1:-1])  # between the lines of the app
        assert not any(word in text for word in ("%", "cause"))
        assert all(len(line) <= 80 for line in screen_lines(app))
        await pilot.press("j", "j")
        await press(pilot, "enter", until=lambda: len(app.screen_stack) == 1 and app.main.current == "data")
        data = pane_of(app, "data")
        await wait_for(pilot, lambda: data.view is not None and data.index == 10)
        assert "question 10" in screen_text(app), "line 12, behind a blank one"
        ask(app, run)
        await wait_for(pilot, lambda: isinstance(app.screen, WhyForm))  # of the result
        await press(pilot, "escape", until=lambda: len(app.screen_stack) == 1)
        ask(app, run, step=15)
        await wait_for(pilot, lambda: isinstance(app.screen, WhyScreen))
        await press(pilot, "G", until="rows.jsonl:3")
        assert not FORBIDDEN & set(screen_text(app))
        await press(pilot, "e", until=lambda: isinstance(app.screen, WhyForm))
        search.found = replace(FOUND, wanted="")
        await press(pilot, "escape", until=lambda: isinstance(app.screen, WhyScreen))
        await press(pilot, "e", until=lambda: isinstance(app.screen, WhyForm))
        await press(pilot, *["backspace"] * 8, "enter", until=lambda: len(search.requests) == 2)
        await wait_for(pilot, lambda: isinstance(app.screen, WhyScreen))
        await press(pilot, "e", until=lambda: isinstance(app.screen, WhyForm))
        await press(pilot, "enter", until=lambda: len(search.requests) == 3)
    assert [request.wanted for request in search.requests] == ["hardware", "", "I do not know"], "at last, of the base"


async def test_the_form_says_that_a_live_run_is_slowed_down(private_home: Path) -> None:
    run = run_on(private_home.parent / "rows.jsonl")
    ScriptedRun(private_home, "20261124-143600-live", total=60).begin().steps(1, 10)
    async with running(LocaltuneApp(run="latest"), until=lambda app: app.state.other_live) as (app, pilot):
        ask(app, run)
        await shown(pilot, "It should have said", "A run is live: the search takes memory and time from it.")


async def test_refused_runs_and_searches_say_why(search: FakeSearch, private_home: Path) -> None:
    search.found = UserError("The rows have changed.", "Train it again.")
    run = run_on(private_home.parent / "rows.jsonl")
    full = make_run(5, method={"name": "full"})
    async with running() as (app, pilot):
        ask(app, full)
        await shown(pilot, "method.name = full", "Ask a LoRA run trained by sft.")
        await press(pilot, "escape", until=lambda: len(app.screen_stack) == 1)
        ask(app, run)
        await shown(pilot, "It should have said")
        await press(pilot, *"hardware", "enter", until="The rows have changed.")
        await press(pilot, "escape", until=lambda: len(app.screen_stack) == 1)
        ask(app, run)
        await wait_for(pilot, lambda: isinstance(app.screen, WhyForm))
        assert app.screen.query_one(PromptInput).text == "hardware", "as it was typed"


async def test_the_index_is_made_in_the_background_and_the_question_asked_again(
    search: FakeSearch, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Making:
        def run(self, tell: Any) -> IndexResult:
            tell(JobProgress("gradients of the rows", 400, 800))
            search.found = replace(FOUND, considered=400)
            return IndexResult((15, 30), 400, 6_500_000, 90.0, 800)

        def close(self) -> None:
            pass

    def refused(_: Run, __: int | None) -> Making:
        raise UserError("The run has gone on.", "Wait for its end.")

    monkeypatch.setattr("tui.screens.why.index_job", refused)
    run = run_on(private_home.parent / "rows.jsonl")
    async with running() as (app, pilot):
        ask(app, run)
        await shown(pilot, "It should have said")
        await press(pilot, "enter", until=lambda: isinstance(app.screen, WhyScreen))
        await press(pilot, "A", until="The run has gone on.")
        monkeypatch.setattr("tui.screens.why.index_job", lambda *_: Making())
        await press(pilot, "escape", until=lambda: isinstance(app.screen, WhyScreen))
        await press(pilot, "A", until="The index is there: 400 rows at steps 15 and 30")
        await press(pilot, "enter", until=lambda: isinstance(app.screen, WhyScreen) and len(search.requests) == 2)
        await wait_for(pilot, lambda: "compares all" not in screen_text(app) and PROOF[:30] in screen_text(app))
        assert "A compare all rows" not in screen_text(app)
        assert len(app.screen_stack) == 2, "the former list has made room"


async def test_training_again_without_rows_is_queued_and_shown(
    search: FakeSearch, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[tuple[Any, ...]] = []

    def begin(run: Run, rows: Any, messages: Any, *, wanted: str, progress: Any) -> Proof:
        began.append((run, rows, messages, wanted))
        progress(JobProgress("asking the run", 0, 2))
        return PROOF_OF

    monkeypatch.setattr("tui.screens.why.begin_proof", begin)

    def not_started() -> None:
        raise UserError("the runner did not answer.")

    monkeypatch.setattr("core.queue.status.start_runner", not_started)
    views = [ProofView(PROOF_OF, ProofRun("without 2 rows", "queued", words="entry 3 waits"), CONTROL)]
    monkeypatch.setattr("tui.screens.why.view_proof", lambda *_: views[-1])
    run = run_on(private_home.parent / "rows.jsonl")
    async with running(size=(120, 40)) as (app, pilot):
        ask(app, run, "hardware")
        await shown(pilot, "It should have said")
        await press(pilot, "enter", until=lambda: isinstance(app.screen, WhyScreen))
        await pilot.press("j")
        await press(pilot, "r", until=("these rows and their like (7)", "the 5 rows listed", "rows.jsonl:11"))
        await press(pilot, "c", until=lambda: isinstance(app.screen, ProofScreen))
        assert began == [(run, (FileLine("rows.jsonl", 11),), QUESTION, "hardware")]
        await shown(pilot, "without 2 rows         entry 3 waits", "left out   rows.jsonl:1-2")
        await shown(pilot, "The queue is not started: the runner did not answer.")
        views.append(ProofView(PROOF_OF, WITHOUT, CONTROL))
        await shown(pilot, "Without these 2 rows the answer is the one wanted")
        assert "not started" not in screen_text(app)
        await press(pilot, "escape", until=lambda: isinstance(app.screen, WhyScreen))
        await press(pilot, "r", until="these rows and their like")
        await press(pilot, "enter", until=lambda: len(began) == 2)
        assert [row.line for row in began[1][1]] == list(range(10, 17))


async def test_proofs_of_a_run_are_chosen_from_and_shown(private_home: Path) -> None:
    run = run_on(private_home.parent / "rows.jsonl")

    def keep(identity: str, created: float) -> None:
        (run.path / PROOFS).mkdir(parents=True, exist_ok=True)
        (run.path / PROOFS / f"{identity}.json").write_text(json.dumps(replace(PROOF_OF, created=created).to_dict()))

    async with running(notifications=True) as (app, pilot):

        async def press_on_the_form(until: Any) -> None:
            ask(app, run)
            await shown(pilot, "It should have said")
            await press(pilot, "ctrl+r", until=until)

        await press_on_the_form("This run has no proofs yet")
        keep("a", 1.0)
        await press_on_the_form(lambda: isinstance(app.screen, ProofScreen))
        await shown(pilot, "without 2 rows         it is no longer in the queue")
        await press(pilot, "escape", until=lambda: len(app.screen_stack) == 1)
        keep("b", 1e300)
        await press_on_the_form(("Proofs of this run", "–, without 2 rows", "which area?"))
        await press(pilot, "enter", until=lambda: isinstance(app.screen, ProofScreen))


async def test_the_search_goes_on_when_its_view_is_left(
    search: FakeSearch, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def run_slowly(tell: Any) -> Attribution:
        tell(JobProgress("gradients of the rows", 1, 2))
        assert gate.wait(60)
        return FOUND

    monkeypatch.setattr(search, "run", run_slowly)
    run = run_on(private_home.parent / "rows.jsonl")
    async with running() as (app, pilot):
        ask(app, run)
        await shown(pilot, "It should have said")
        await press(pilot, "enter", until="gradients of the rows …")
        await press(pilot, "escape", until=lambda: len(app.screen_stack) == 1)
        ask(app, run)
        await wait_for(pilot, lambda: isinstance(app.screen, JobScreen))
        await pilot.press("escape")
        gate.set()
        ask(app, run)
        await wait_for(pilot, lambda: isinstance(app.screen, WhyScreen))
    assert len(search.requests) == 1
    assert store.read_queue().entries == ()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Run:
    """A run of a tiny model whose answers can be traced."""
    directory = tmp_path_factory.mktemp("why")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALTUNE_HOME", str(directory / "home"))
        patch.setattr(measuring, "_run", run_here)
        return trained(directory, tiny_model_dir)


async def test_an_answer_of_a_real_run_is_traced_to_a_row_of_its_file(traced: Run, private_home: Path) -> None:
    async with running() as (app, pilot):
        app.post_message(AskWhy(traced, None, QUESTION, '{"area": "refund", "ref": 3}', "no idea"))
        await shown(pilot, "It should have said")
        await press(pilot, "enter", until=lambda: isinstance(app.screen, WhyScreen | JobScreen))
        await wait_for(pilot, lambda: isinstance(app.screen, WhyScreen), 120)
        await shown(pilot, "Rows for it", "rows.jsonl:", PROOF[:40])
        (line,) = (line for line in screen_lines(app) if "▸" in line)
        number = int(line.partition("rows.jsonl:")[2].split()[0])
        await press(pilot, "enter", until=lambda: len(app.screen_stack) == 1)
        data = pane_of(app, "data")
        await wait_for(pilot, lambda: data.view is not None and data.index == number - 1)
