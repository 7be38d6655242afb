"""The data pane follows the configuration: relevant changes are shown at once, others change nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from core.analysis.job import AnalysisJob, analysis_job
from core.analysis.result import Analysis, AnalysisRequest
from core.config.document import ConfigDocument
from core.jobs.job import Job, JobProgress
from tests.core.data.sample_files import json_lines, write
from tests.tui.config_panes import write_config
from tests.tui.data_panes import (
    analyzed,
    configuration,
    data_pane,
    make_tokenizer,
    messy,
    opened,
    path_of,
    row,
    shows,
    tokens_of,
    write_lines,
)
from tests.tui.harness import ShellApp, pane_of, press, running, wait_for
from tui.app import LocaltuneApp

SWAPPED = [{"frage": f"warum {number}?", "antwort": f"darum {number}."} for number in range(8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[AnalysisRequest]:
    """The requests of real analyses."""
    made: list[AnalysisRequest] = []

    def counted(request: AnalysisRequest) -> AnalysisJob:
        made.append(request)
        return analysis_job(request)

    monkeypatch.setattr("tui.panes.data.session.analysis_job", counted)
    return made


async def test_format_and_columns_reach_rows_and_analysis(
    tmp_path: Path, model: Path, requests: list[AnalysisRequest]
) -> None:
    path = write(tmp_path / "rows.jsonl", json_lines(SWAPPED))
    document = configuration(tmp_path, model__base=str(model), data__train="rows.jsonl")
    async with data_pane(path, document) as (pilot, pane):
        await wait_for(pilot, lambda: shows(pilot, "of no known format"))
        assert pane.view is not None
        assert requests == []
        document.set("data.columns", {"user": "frage", "assistant": "antwort"})
        pane.configure(document)
        analysis = await analyzed(pilot, pane)
        assert (analysis.rows, analysis.used, analysis.sources[0].format) == (8, 8, "prompt_completion")
        found = [(turn.role, turn.text) for turn in pane.body.conversation.turns]
        assert found == [("user", "warum 0?"), ("assistant", "darum 0.")]
        await press(pilot, "m", until=lambda: pane.body.mask_view.parts)
        learned = "".join(cell.text for cell in pane.body.mask_view.parts[0].cells if cell.learned)
        assert learned == "darum 0.<|im_end|>"
        document.set("data.columns", {"text": "antwort"})
        pane.configure(document)
        await wait_for(pilot, lambda: pane.view is not None and pane.view.format_name == "plain text")
        analysis = await analyzed(pilot, pane)
        assert analysis.sources[0].format == "text"
        assert pane.session.columns == ("tok", "learned", "text")
        await wait_for(pilot, lambda: not tokens_of(pane).startswith("<|im_start|>"))
        assert [request.columns for request in requests] == [
            {"user": "frage", "assistant": "antwort"},
            {"text": "antwort"},
        ]


@pytest.mark.long
async def test_only_what_is_seen_starts_over(tmp_path: Path, model: Path, requests: list[AnalysisRequest]) -> None:
    path = messy(tmp_path / "rows.jsonl")
    write_lines(tmp_path / "eval.jsonl", [row("question 1 of many", "the answer is 1")])
    write(
        tmp_path / "mine.jinja",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    )
    document = configuration(tmp_path, model__base=str(model), data__train="rows.jsonl")
    async with data_pane(path, document) as (pilot, pane):
        await analyzed(pilot, pane)
        view = pane.view
        document.set("train.learning_rate", 1e-3)
        pane.configure(document)
        await analyzed(pilot, pane)
        assert len(requests) == 1
        seen: tuple[tuple[str, Any], ...] = (
            *(("data.eval", "eval.jsonl"), ("data.weights", [2.0]), ("train.max_length", 64)),
            *(("data.overlong", "truncate"), ("data.supervise", "last"), ("data.special_tokens", "keep")),
            *(("data.format", "messages"), ("template.file", "mine.jinja")),
        )
        for name, value in seen:
            before = len(requests)
            document.set(name, value)
            pane.configure(document)
            await wait_for(pilot, lambda: len(requests) == before + 1)  # noqa: B023
            await analyzed(pilot, pane)
            assert pane.view is view, "the file stays open"
        last = requests[-1]
        assert (last.max_length, last.overlong) == (64, "truncate")
        assert (last.format, last.eval) == ("messages", (str(tmp_path / "eval.jsonl"),))
        assert last.masks is not None
        assert (last.masks.supervise, last.masks.allow_special) == ("last", True)
        assert last.masks.template is not None
        analysis = await analyzed(pilot, pane)
        assert analysis.problem("leaked") is not None
        assert analysis.dropped == {"not_json": 3, "nothing_supervised": 2}, "cut, the long rows have no answer left"


def held_job(_: AnalysisRequest) -> AnalysisJob:
    """An analysis that does not end before it is closed."""

    def work(job: AnalysisJob) -> Analysis:
        job.report(JobProgress("reading", 43, 100))
        job.watch(["sleep", "600"], lambda _: None)
        raise AssertionError("it was not closed")

    return Job("the analysis", work)


async def test_rows_on_the_screen_have_marks_before_the_analysis(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tui.panes.data.session.analysis_job", held_job)
    path = messy(tmp_path / "rows.jsonl")
    document = configuration(tmp_path, model__base=str(model), train__max_length=128)
    async with data_pane(path, document, size=(120, 40)) as (pilot, pane):
        await wait_for(pilot, lambda: shows(pilot, "reading 43%"))
        await wait_for(pilot, lambda: pane.view is not None and pane.view.marks.count == 3)
        assert pane.view is not None
        assert [pane.view.marks.level(index) for index in (4, 9, 24, 49)] == ["drop", "drop", "drop", None]
        assert isinstance(pilot.app, ShellApp)
        assert pilot.app.jobs.losses() == [], "leaving asks nothing, as it begins again with the file"
        visited = []
        for _ in range(4):
            await pilot.press("exclamation_mark")
            visited.append(pane.index + 1)
        assert visited == [5, 10, 25, 5]
        await wait_for(pilot, lambda: shows(pilot, "3 problems so far (! shows them) · reading 43%"))
        await press(pilot, "f", until=lambda: shows(pilot, "Every row must be looked at first (43% so far)."))
        document.set("data.overlong", "truncate")
        pane.configure(document)
        await wait_for(pilot, lambda: pane.body.cells(9, 1)[0].mark == "warn")


async def test_the_analysis_is_a_job_whose_view_is_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.panes.data.session.analysis_job", held_job)
    async with running(LocaltuneApp(write_config(tmp_path)), (120, 34), until="reading 43%") as (app, pilot):
        await press(pilot, "5", until="J analysis 43%")
        await press(pilot, "J", until=lambda: pane_of(app, "data").shows_report)
        assert app.main.current == "data"
        await press(pilot, "escape", until=lambda: not pane_of(app, "data").shows_report)
        assert [job.stage for job in app.state.jobs] == ["on"]


async def test_problems_come_from_one_reading_by_the_analysis(tmp_path: Path, requests: list[AnalysisRequest]) -> None:
    """Rows beyond the screen are read by the analysis alone, and their marks are those it found."""
    path = messy(tmp_path / "rows.jsonl")
    read: set[int] = set()
    async with data_pane(path, size=(120, 24)) as (pilot, pane):
        assert pane.view is not None
        rows = pane.view.file.rows

        def counting(start: int, count: int) -> Any:
            read.update(range(start, start + count))
            return rows(start, count)

        pane.view.file.rows = counting  # type: ignore[method-assign]
        await analyzed(pilot, pane)
        assert max(read, default=0) < 30
        assert pane.view.marks.level(44) == "drop"
        await pilot.press("left_square_bracket")
        assert pane.index == 44
        assert len(requests) == 1


async def test_a_failed_analysis_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requests: list[AnalysisRequest]
) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [row(f"q {n}?", f"a {n}") for n in range(60_000)])
    async with data_pane(path) as (pilot, pane):
        await wait_for(pilot, lambda: pane.session.job is not None and pane.session.job.pid is not None)
        assert pane.session.job is not None
        assert pane.session.job.pid is not None
        os.killpg(pane.session.job.pid, signal.SIGKILL)
        await wait_for(pilot, lambda: shows(pilot, "✗ The analysis failed: its process"))
        assert shows(pilot, "look at a part of the rows. f5 opens it again.")
        assert shows(pilot, "q 0?"), "the rows are still shown"
        for key in ("exclamation_mark", "f", "l"):
            await press(pilot, key)
            assert shows(pilot, "✗ The analysis failed: its process"), key
        await press(pilot, "s", until=lambda: shows(pilot, "✗ The analysis failed: its process"))
        await pilot.press("s")
        write_lines(path, [row(f"q {n}?", f"a {n}") for n in range(60)])
        await press(pilot, "f5", until=lambda: len(requests) == 2)
        await analyzed(pilot, pane)


async def test_a_model_that_becomes_ready_is_noticed(tmp_path: Path, model: Path) -> None:
    path = messy(tmp_path / "rows.jsonl")
    document = configuration(tmp_path, model__base="mine")
    async with data_pane(path, document) as (pilot, pane):
        assert (await analyzed(pilot, pane)).lengths is None
        await press(pilot, "l")
        assert shows(pilot, "The lengths of rows are not known: There are no tokens to show. The model mine")
        os.symlink(model, tmp_path / "mine")
        pane.configure(document)
        await wait_for(
            pilot,
            lambda: pane.view is not None and pane.view.analysis is not None and pane.view.analysis.lengths,
        )


async def test_the_file_of_the_configuration_is_shown_once(tmp_path: Path) -> None:
    first, second = messy(tmp_path / "a.jsonl"), messy(tmp_path / "b.jsonl")
    async with data_pane() as (pilot, pane):
        document = configuration(tmp_path, data__train="a.jsonl")
        pane.follow(document)
        await wait_for(pilot, lambda: pane.view is not None)
        view = pane.view
        # As after the editor, when any option may have changed.
        pane.follow(ConfigDocument(document.dumps(), document.path))
        await pilot.pause()
        assert pane.view is view
        assert pane.opener.opening is None
        await opened(pilot, pane, second)
        document.set("train.seed", 7)
        pane.follow(document)
        await pilot.pause()
        assert pane.opener.opening is None, "another file that is looked at stays"
        document.set("data.train", "b.jsonl")
        pane.follow(document)
        assert pane.opener.opening is None, "it is there already"
        document.set("data.train", "a.jsonl")
        pane.follow(document)
        await wait_for(pilot, lambda: path_of(pane) == first)
        # A file that is missing is told until the configuration has another.
        document.set("data.train", "nope.jsonl")
        pane.follow(document)
        await wait_for(pilot, lambda: shows(pilot, "There is no file at"))
        document.set("train.seed", 8)
        pane.follow(document)
        await pilot.pause()
        assert shows(pilot, "There is no file at")
        # As after an undo.
        document.set("data.train", "a.jsonl")
        pane.follow(document)
        await wait_for(pilot, lambda: not shows(pilot, "There is no file at"))
        assert path_of(pane) == first


async def test_a_message_goes_with_the_next_key(tmp_path: Path) -> None:
    path = messy(tmp_path / "a.jsonl")
    async with data_pane(path) as (pilot, pane):
        await pilot.press("slash", *"no such text", "enter")
        await wait_for(pilot, lambda: bool(pane._status) and not pane._is_searching)
        await press(pilot, "m", until=lambda: not pane._status)
        assert pane.body.shows_tokens
