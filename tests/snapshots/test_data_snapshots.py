"""Snapshots of the Data pane: real rows, a tokenizer of single bytes, the real analysis."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from core.analysis.problems import FileLine
from core.config.document import dump_config
from core.config.schema import Config
from core.evaluation.row_losses import DataFile, RowLosses, RowReview, Twin, WorstRow, write_review
from core.runs.record.state import RunState
from core.runs.record.store import make_run
from tests.conftest import CHATML
from tests.core.template.toy_tokenizers import save
from tests.short_list import long_but
from tests.snapshots.conftest import Compare, make_app
from tests.tui.data_panes import row
from tests.tui.harness import pane_of, press, screen_text, wait_for
from tui.app import LocaltuneApp

SPECIALS = ("<|im_start|>", "<|im_end|>")
#: Keys that show the Data pane: alone where only one fits, else next to the others or zoomed.
PLACES: dict[str, tuple[tuple[int, int], tuple[str, ...]]] = {
    "80x24": ((80, 24), ("1",)),
    "200x50-tiled": ((200, 50), ("1", "0")),
    "200x50-zoomed": ((200, 50), ("1", "1")),
}


def save_byte_tokenizer(directory: Path) -> None:
    """A tokenizer whose tokens are single bytes: there is nothing to train, so it is always the same."""
    vocabulary = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    save(directory, backend, template=CHATML, stops=SPECIALS[1:], eos_token=SPECIALS[1])


@pytest.fixture
def app(tmp_path: Path, private_home: Path) -> LocaltuneApp:
    """The app with 64 tickets, some of which cannot be used."""
    kinds = ("router drops its line", "invoice was sent twice", "order has not arrived", "fan grinds on cold mornings")
    lines = [
        row(f"Ticket {number}: the {kinds[number % 4]}.", json.dumps({"area": "abcd"[number % 4], "ref": number}))
        for number in range(1, 65)
    ]
    lines[2] = row("Ticket 3: the order has not arrived. " + "We have asked twice. " * 12, json.dumps({"ref": 3}))
    lines[6] = "{broken"
    lines[40] = row("Ticket 41: " + "it goes on and on " * 20, json.dumps({"area": "b", "ref": 41}))
    lines[50] = lines[10]
    lines[60] = row("Ticket 61: write to jane.doe@posteo.de", "   ")
    (tmp_path / "tickets_train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    save_byte_tokenizer(tmp_path / "bytes")
    config = tmp_path / "tickets.toml"
    config.write_text(
        '[model]\nbase = "bytes"\n\n[data]\ntrain = "tickets_train.jsonl"\n\n[train]\nmax_length = 256\n',
        encoding="utf-8",
    )
    return make_app(private_home, config)


def showing(
    place: str, *keys: str, ready: Callable[[Any], object] = lambda _: True, looked_up: bool = False
) -> dict[str, Any]:
    """Arguments of ``snap_compare``: the pane at a place, every row analyzed, some keys, and a condition.

    ``looked_up`` waits for the losses of the rows before the keys.
    """
    size, before = PLACES[place]

    async def run(pilot: Pilot[Any]) -> None:
        shell: Any = pilot.app
        await wait_for(pilot, lambda: shell.state.document is not None and pane_of(shell, "data") is not None)
        await pilot.press(*before)
        pane = pane_of(shell, "data")
        await wait_for(pilot, lambda: pane.view is not None and pane.view.analysis is not None)
        await wait_for(pilot, lambda: pane.session.losses is not None or not looked_up)
        await press(pilot, *keys, until=lambda: ready(pane))
        # Every row on the screen has been counted.
        await wait_for(pilot, lambda: not any("–  " in line for line in screen_text(shell).splitlines()))
        shell.clear_notifications()
        await wait_for(pilot, lambda: not shell.screen.query("Toast"))

    return {"terminal_size": size, "run_before": run}


def _has_tokens(pane: Any) -> bool:
    return bool(pane.body.mask_view.parts)


@pytest.mark.parametrize("place", PLACES)
def test_rows_and_tokens(snap_compare: Compare, app: LocaltuneApp, place: str) -> None:
    assert snap_compare(app, **showing(place, "j", "j", "m", ready=_has_tokens))


@pytest.fixture
def no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without colors; the app reads it once, when it is made."""
    monkeypatch.setenv("NO_COLOR", "1")


def test_tokens_without_color(snap_compare: Compare, no_color: None, app: LocaltuneApp) -> None:
    assert snap_compare(app, **showing("80x24", "j", "m", ready=_has_tokens))


def test_matches_in_tokens(snap_compare: Compare, app: LocaltuneApp) -> None:
    keys = ("m", "slash", *"area", "enter")
    assert snap_compare(app, **showing("80x24", *keys, ready=lambda pane: pane.body.mask_view.match_place == (1, 1)))


@pytest.mark.parametrize("place", long_but(["80x24"], ["80x24", "200x50-zoomed"]))
def test_report(snap_compare: Compare, app: LocaltuneApp, place: str) -> None:
    assert snap_compare(app, **showing(place, "s", ready=lambda pane: pane.shows_report))


@pytest.mark.parametrize("place", long_but(["80x24"], ["80x24", "200x50-tiled"]))
def test_filter(snap_compare: Compare, app: LocaltuneApp, place: str) -> None:
    assert snap_compare(app, **showing(place, "f", ready=lambda pane: pane.session.filter is not None))


@pytest.fixture
def measured(tmp_path: Path, app: LocaltuneApp) -> LocaltuneApp:
    """The app after a run, some of whose rows have not been learned."""
    data = tmp_path / "tickets_train.jsonl"
    config = Config.model_validate({"model": {"base": str(tmp_path / "bytes")}, "data": {"train": str(data)}})
    run = make_run("20260102-030405-tickets", dump_config(config), dump_config(config))
    RunState(state="finished").write(run.state_path)
    rows = {line: line % 7 / 50 for line in range(1, 65) if line not in (7, 61)} | {12: 1.25, 30: 2.5, 33: 12.5}
    answers = {line: f"its own answer to {line}" for line in (33, 30, 12, 6)}
    twins = {30: (Twin(data.name, 34, "another answer"),)}
    worst = tuple(
        WorstRow(data.name, line, rows[line], 20, "a ticket", "an answer", own, twins.get(line, ()))
        for line, own in answers.items()
    )
    status = data.stat()
    file = DataFile(str(data), "", status.st_size, status.st_mtime_ns)
    losses = {data.name: [(line, loss, 20) for line, loss in rows.items()]}
    record = RowLosses(run.id, 12, "", (file,), losses, worst)
    (run.path / "trace").mkdir()
    (run.path / "trace" / "row_losses.json").write_text(json.dumps(asdict(record)), encoding="utf-8")
    write_review(run, RowReview(frozenset({FileLine(data.name, 12)})))
    return app


@pytest.mark.parametrize("place", ["80x24", "200x50-zoomed"])
def test_rows_not_learned(snap_compare: Compare, measured: LocaltuneApp, place: str) -> None:
    def is_listed(pane: Any) -> bool:
        return pane.session.filter is not None and pane.index == 29

    assert snap_compare(measured, **showing(place, "f", "g", "j", ready=is_listed, looked_up=True))
