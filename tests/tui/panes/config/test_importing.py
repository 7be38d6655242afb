"""Import of another tool's configuration in the config pane."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.containers import VerticalScroll

from tests.tui.config_panes import answer, config_pane
from tests.tui.harness import FORBIDDEN, press, requested, resize, screen_text, shown, wait_for
from tui.screens.box import ReportScreen
from tui.widgets.text_block import TextBlock


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n')
    path = tmp_path / "qlora.yml"
    path.write_text(
        "base_model: org/model\nadapter: lora\nlora_r: 24\nlora_alpha: 8\nsequence_len: 256\ndeepspeed: x.json\n"
        'datasets: [{path: rows.jsonl, type: completion}]\nlora_rr: 3\nnote: "a\\e]52;c;x\\a"\n'
    )
    return path


async def test_a_file_becomes_a_new_configuration_with_its_report(theirs: Path) -> None:
    async with config_pane(size=(100, 40)) as (pilot, pane):
        await answer(pilot, "I", str(theirs), until=lambda: isinstance(pilot.app.screen, ReportScreen))
        await shown(pilot, "Imported from qlora.yml", "deepspeed")
        await press(pilot, "G", until="Did you mean lora_r?")
        assert not FORBIDDEN & set(screen_text(pilot.app).replace("\n", ""))
        await press(pilot, "enter", until=lambda: not isinstance(pilot.app.screen, ReportScreen))
        assert pane.document.get("method.rank") == 24
        assert pane.document.get("data.train") == str(theirs.parent / "rows.jsonl")
        assert pane.document.path is None
        assert pane.model.is_edited
        assert len(requested(pilot, "configuration.edited")) == 1
        await wait_for(pilot, lambda: "not saved yet" in screen_text(pilot.app))


@pytest.mark.long
async def test_the_report_uses_the_width_names_its_keys_and_moves_by_them(theirs: Path) -> None:
    with theirs.open("a") as file:
        file.write("lora_target_modules: [q_proj, v_proj]\n")
        file.writelines(f"odd_key_{number}: {{a: [1, true], b: }}\n" for number in range(40))
    async with config_pane(size=(200, 50)) as (pilot, _):
        await answer(pilot, "I", str(theirs), until=lambda: isinstance(pilot.app.screen, ReportScreen))
        for size in ((200, 50), (120, 34), (80, 24)):
            await resize(pilot, *size)
            box = pilot.app.screen.query_one(VerticalScroll)
            assert box.outer_size.width >= min(size[0] * 98 // 100, 124) - 1
            assert "j k scroll  pgup pgdn page  g G ends  esc close" in screen_text(pilot.app)
            report = " ".join(pilot.app.screen.query_one(TextBlock).content.plain.split())
            assert "odd_key_0: a 1 and true, b none" in report
            assert "[" not in report
            assert max(len(line) for line in screen_text(pilot.app).splitlines()) == size[0]
        for key, place in (("j", 1), ("k", 0), ("pagedown", box.size.height), ("pageup", 0), ("G", box.max_scroll_y)):
            await press(pilot, key, until=lambda: box.scroll_y == place)  # noqa: B023 - within this turn of the loop
        await press(pilot, "g", until=lambda: box.scroll_y == 0)
        await pilot.resize_terminal(200, 50)
        await wait_for(pilot, lambda: box.outer_size.width > 90)
        await pilot.resize_terminal(90, 30)
        await wait_for(pilot, lambda: box.outer_size.width <= 90)


async def test_a_file_that_is_none_is_reported_and_nothing_changes(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("a: [\n")
    async with config_pane(size=(120, 30)) as (pilot, pane):
        before = pane.document
        await answer(pilot, "I", str(wrong), until="is not YAML")
        assert pane.document is before
