"""The data pane with real files: rows, problems, search, errors, hostile text, a million rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tui.data_panes import analyzed, data_pane, opened, path_of, row, write_lines
from tests.tui.harness import (
    FORBIDDEN,
    HOSTILE,
    paste,
    press,
    requested,
    resize,
    screen_lines,
    screen_text,
    shown,
    wait_for,
    words,
)
from tui.widgets.lists.data_tree import DataTree


def write_rows(path: Path, count: int) -> Path:
    return write_lines(path, (row(f"question {number}", f"answer {number}") for number in range(1, count + 1)))


async def test_empty_pane_says_what_is_missing_and_the_keys() -> None:
    async with data_pane(size=(60, 20)) as (pilot, pane):
        await wait_for(pilot, lambda: "No data yet." in screen_text(pilot.app))
        for key in ("o", "O", "E"):
            assert any(line.lstrip("│ ").startswith(f"{key}   ") for line in screen_lines(pilot.app))
        # Sample data is one key away.
        await resize(pilot, 100, 30)
        await press(pilot, "E", until=lambda: pane.view is not None)
        await analyzed(pilot, pane)
        await shown(pilot, "tickets_train.jsonl", "chat messages", "no problems")


async def test_rows_and_the_row_under_the_cursor(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 300)
    async with data_pane(path, size=(60, 20)) as (pilot, pane):
        await analyzed(pilot, pane)
        for size in ((60, 20), (92, 30)):
            await resize(pilot, *size)
            lines = screen_lines(pilot.app)
            assert "300 rows" in lines[0]
            assert any("▸   1  question 1 " in line and "answer 1" in line for line in lines)
            assert all(len(line) == size[0] for line in lines)
        assert "read on" not in screen_lines(pilot.app)[-1], "all of the row is in sight"
        await press(pilot, "j", "down", "j")
        assert pane.body.rows.cursor == 3
        shown = {(turn.role, turn.text) for turn in pane.body.conversation.turns}
        assert shown == {("user", "question 4"), ("assistant", "answer 4")}


async def test_a_title_without_room_leaves_out_what_matters_least(tmp_path: Path) -> None:
    path = write_rows(tmp_path / f"{'long_' * 9}name.jsonl", 40)
    async with data_pane(path, size=(100, 22)) as (pilot, pane):
        await analyzed(pilot, pane)
        for width, title in ((100, f"{path.name} · chat messages · 40 rows"), (80, f"{path.name} · 40 rows")):
            await resize(pilot, width, 22)
            assert f"─ 1 Data · {title} ─" in screen_lines(pilot.app)[0]
        await resize(pilot, 60, 22)
        assert "… · 40 rows ─" in screen_lines(pilot.app)[0]


async def test_keys_move_the_cursor_to_the_ends_and_by_pages(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 1000)
    async with data_pane(path, size=(80, 22)) as (pilot, pane):
        # Until then the line below the rows comes and goes, and a page with it.
        await analyzed(pilot, pane)
        for key, cursor in (("G", 999), ("k", 998), ("g", 0), ("end", 999), ("home", 0)):
            await pilot.press(key)
            assert pane.body.rows.cursor == cursor, key
        await pilot.press("pagedown")
        page = pane.body.rows.cursor
        assert 5 < page < 20
        await pilot.press("pagedown", "pageup")
        assert pane.body.rows.cursor == page
        assert f"question {page + 1} " in screen_text(pilot.app)


async def test_the_row_takes_the_keys_and_gives_them_back(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    text = "\n".join(f"line {number}" for number in range(100))
    path.write_text(json.dumps({"prompt": text, "completion": "ok"}) + "\n")
    async with data_pane(path, size=(80, 22)) as (pilot, pane):
        await wait_for(pilot, lambda: "─ enter read on  t use for training" in screen_lines(pilot.app)[-1])
        await pilot.press("enter")
        assert pane.body.conversation.has_focus
        assert "─ pgdn page down  pgup page up  esc back" in screen_lines(pilot.app)[-1]
        assert "line 50" not in screen_text(pilot.app)
        await press(pilot, "G", until="line 99")
        assert pane.body.rows.cursor == 0
        await pilot.press("escape")
        assert pane.body.rows.has_focus


async def test_search_forward_back_and_around_and_rows_by_number(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 500)
    async with data_pane(path, size=(100, 30)) as (pilot, pane):
        await press(pilot, "slash", *"WER 33", "enter", until=lambda: pane.body.rows.cursor == 32)
        assert pane.body.rows.has_focus
        await press(pilot, "n", until=lambda: pane.body.rows.cursor == 329)
        await press(pilot, "N", "N", until=lambda: pane.body.rows.cursor == 338)
        assert "from the other end" in screen_text(pilot.app)
        await press(pilot, "slash", "ctrl+u", *"nowhere", "enter", until="No row has “nowhere”")
        assert pane.body.rows.cursor == 338
        await press(pilot, "colon", *"321", "enter")
        assert pane.body.rows.cursor == 320
        await press(pilot, "ctrl+g", *"501", "enter")
        assert pane.body.rows.cursor == 320
        assert "rows go from 1 to 500" in screen_text(pilot.app)


async def test_search_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.datasets.view._BREATH_SECONDS", 0.05)
    path = write_rows(tmp_path / "rows.jsonl", 100_000)
    async with data_pane(path, size=(100, 30)) as (pilot, pane):
        await wait_for(pilot, lambda: pane.view is not None and pane.view.file.complete)
        await press(pilot, "slash", *"nowhere", "enter", until="of 100,000 rows · esc stops")
        await press(pilot, "escape", until="Search stopped.")


async def test_a_file_is_opened_by_its_path_and_by_browsing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    write_rows(tmp_path / "sub" / "inner.jsonl", 3)
    write_rows(tmp_path / "tickets_train.jsonl", 3)
    write_rows(tmp_path / "tickets_eval.jsonl", 2)
    (tmp_path / "notes.md").write_text("no data")
    async with data_pane(size=(100, 30)) as (pilot, pane):
        await pilot.press("o")
        await paste(pilot, f"{tmp_path}/t")
        await press(pilot, "tab")
        text = screen_text(pilot.app)
        assert "tickets_eval.jsonl  tickets_train.jsonl" in text
        assert "notes.md" not in text
        await press(pilot, "e", "tab", "enter", until=lambda: path_of(pane) == tmp_path / "tickets_eval.jsonl")
        await press(pilot, "O", until="tickets_train.jsonl")
        assert "notes.md" not in screen_text(pilot.app)
        await press(pilot, "j", "enter", until="inner.jsonl")
        inner = tmp_path / "sub" / "inner.jsonl"
        await press(pilot, "j", "enter", until=lambda: path_of(pane) == inner)
        assert pane.body.rows.has_focus


async def test_keys_in_the_directory_tree_are_its_own(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "tickets.jsonl", 30)
    for name in ("letters", "notes", "orders"):
        write_rows(tmp_path / f"{name}.jsonl", 3)
    async with data_pane(path, size=(100, 30)) as (pilot, pane):
        await analyzed(pilot, pane)
        await press(pilot, "O", until="tickets.jsonl")
        tree = pane.browser.query_one(DataTree)
        await press(pilot, "f", "t", "l", "G", until=lambda: tree.cursor_line == 4)
        await press(pilot, "g", until=lambda: tree.cursor_line == 0)
        assert (pane.index, pane.session.filter, "use for training" in screen_text(pilot.app)) == (0, None, False)
        await press(pilot, "slash", *"ER", "enter", until="the names with er · esc shows all")
        assert [str(node.label) for node in tree.root.children] == ["letters.jsonl", "orders.jsonl"]
        await press(pilot, "slash", *"zz", "enter", until="No name here has zz")
        await press(pilot, "escape", until="backspace goes up")
        await press(pilot, "escape", until=lambda: pane.body.rows.has_focus)

        await press(pilot, "O", until="tickets.jsonl")
        pane.body.rows.cursor = 29
        await press(pilot, "escape", until=lambda: pane.body.rows.has_focus)
        await wait_for(pilot, lambda: "user       question 30" in screen_text(pilot.app))


async def test_using_the_file_for_training_and_evaluation(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 3)
    async with data_pane(size=(80, 22)) as (pilot, pane):
        await pilot.press("t")
        assert not requested(pilot, "configuration.use_dataset")
        await opened(pilot, pane, path)
        await press(pilot, "t", "H")
        chosen = [request.args for request in requested(pilot, "configuration.use_dataset")]
        assert chosen == [(path, "train"), (path, "eval")]


async def test_a_file_that_cannot_be_opened_is_explained(tmp_path: Path) -> None:
    missing, directory, empty, binary = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"))
    directory.mkdir()
    empty.touch()
    binary.write_bytes(bytes(range(256)) * 50)
    sentences = {missing: "There is no file at", directory: "is a directory", empty: "is empty", binary: "is not text"}
    good = write_rows(tmp_path / "good.jsonl", 3)
    async with data_pane(size=(120, 24)) as (pilot, pane):
        for path, sentence in sentences.items():
            pane.show(path)
            await wait_for(pilot, lambda: sentence in words(pilot))  # noqa: B023 - within this turn of the loop
            assert "open" in screen_text(pilot.app)
        await opened(pilot, pane, good)
        assert "3 rows" in screen_text(pilot.app)
        for path, sentence in sentences.items():
            pane.show(path)
            await wait_for(pilot, lambda: sentence in words(pilot))  # noqa: B023 - within this turn of the loop
            assert path_of(pane) == good, "what was open stays open"


async def test_a_file_that_changes_is_noticed_and_can_be_opened_again(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 40)
    async with data_pane(path, size=(120, 24)) as (pilot, pane):
        await analyzed(pilot, pane)
        write_rows(path, 55)
        await press(pilot, "G", until="has changed since")
        await press(pilot, "f5", until="55 rows")
        assert "since it was opened" not in screen_text(pilot.app)


async def test_hostile_text_never_reaches_a_strip(tmp_path: Path) -> None:
    path = tmp_path / "evil\x1b]0;x\x07[b].jsonl"
    good = {"messages": [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]}
    rows = [good, {HOSTILE: 1}, {"messages": [{"role": HOSTILE, "content": HOSTILE}]}]
    lines = [json.dumps(row) for row in rows] + ["{" + HOSTILE.replace("\x00", "")]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    async with data_pane(path, size=(60, 20)) as (pilot, pane):
        await analyzed(pilot, pane)
        assert "[/]i[bold]j" in screen_text(pilot.app)
        for size, key in (((60, 20), "j"), ((200, 50), "k")):
            await pilot.resize_terminal(*size)
            for _ in range(len(lines)):
                await pilot.pause()
                text = screen_text(pilot.app)
                assert not FORBIDDEN & set(text), sorted(FORBIDDEN & set(text))
                await pilot.press(key)
        await press(pilot, "slash", *"[/]i", "enter", until="next")
        assert not FORBIDDEN & set(screen_text(pilot.app))
        await press(pilot, "O", until="backspace goes up")
        await pilot.pause()
        assert not FORBIDDEN & set(screen_text(pilot.app))


@pytest.mark.long
async def test_a_million_rows_are_paged_to_their_end(tmp_path: Path) -> None:
    path = tmp_path / "million.jsonl"
    text = '{"text": "%07d is the number of this row"}\n'
    with path.open("w") as file:
        for begin in range(0, 1_000_000, 10_000):
            file.write("".join(text % number for number in range(begin + 1, begin + 10_001)))
    async with data_pane(size=(100, 30)) as (pilot, pane):
        await opened(pilot, pane, path)
        view = pane.view
        assert view is not None
        assert "0000001 is the number" in screen_text(pilot.app)
        await wait_for(pilot, lambda: view.file.complete and pane.body.rows.count == 1_000_000, seconds=30)
        await press(pilot, "G", until="1000000 is the number")
        await press(pilot, "colon", *"654321", "enter", until="0654321 is the number")


async def test_pictures_and_columns_that_are_not_read_are_in_the_summary_and_the_report(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "<image>who"}, {"role": "assistant", "content": "Kane"}]
    rows = [{"messages": turns, "images": ["a.png"]}] * 2 + [{"messages": turns[::-1][1:] + turns[1:], "topic": "x"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with data_pane(path, size=(80, 24)) as (pilot, pane):
        await analyzed(pilot, pane)
        text = " ".join(screen_text(pilot.app).replace("│", " ").split())
        assert "1 used · 2 dropped: 2 pictures, video or sound" in text
        assert "columns not read: topic" in text
        assert "The column images holds pictures" in text
        await press(pilot, "s")
        report = " ".join(screen_text(pilot.app).replace("│", " ").split())
        assert "✗ 2 rows pictures, video or sound (not used)" in report
        assert "· 1 row columns not read (note) topic → Nothing of them is learned." in report
