"""Checklist of a terminal app: points that hold in every pane, each with the tests that check it.

Speed, and points that need a GPU, are measured in ``bench/`` and not listed.

1 nothing heavy before the first paint
    tests/test_import_hygiene.py
2 help for every pane, few keys in the footer
    tests/tui/test_app.py::test_help_explains_the_pane_and_scrolls
    tests/tui/test_checklist.py::test_the_footer_and_the_borders_name_few_keys
3 numbers switch panes, and are text in inputs
    tests/tui/test_app.py::test_a_small_terminal_shows_one_pane_and_numbers_switch
    tests/tui/test_app.py::test_number_keys_are_text_in_a_text_input
4 j k g G / esc
    tests/tui/test_checklist.py::test_lists_move_and_search_by_the_usual_keys
    tests/tui/panes/test_runs.py::test_the_filter_shows_what_is_typed_and_esc_leaves_a_kept_one
5 the palette reaches every action
    tests/tui/test_palette.py::test_every_command_is_found_by_its_name_and_by_its_other_words
6 no key that a terminal keeps
    tests/tui/test_checklist.py::test_every_action_has_a_key_that_is_safe
7 a keymap of the user's
    tests/tui/test_keys.py::test_a_keymap_rebinds
    tests/tui/test_keys.py::test_what_is_wrong_in_a_keymap_is_left_out_and_named
8 ctrl+c explains itself
    tests/tui/test_checklist.py::test_ctrl_c_says_how_to_leave
9 quitting asks beside a live run only
    tests/tui/test_app.py::test_quitting_beside_a_live_run_asks_and_can_leave_it
    tests/tui/test_app.py::test_idle_quit_never_asks
10 a run outlives the app
    tests/tui/test_terminal.py::test_killed_and_started_again_it_shows_the_whole_curve
    tests/tui/test_app.py::test_the_app_attaches_to_the_live_run_and_says_so_once
11 the terminal is restored
    tests/tui/test_terminal.py::test_a_signal_restores_the_terminal_and_spares_the_run
    tests/tui/test_mistakes.py::test_a_mistake_leaves_a_whole_terminal_a_sentence_and_a_report
12 one pane, two, four
    tests/tui/test_app.py::test_two_panes_share_a_terminal_of_middle_size
    tests/tui/test_app.py::test_a_large_terminal_tiles_four_panes_and_a_number_again_zooms
    tests/tui/test_driver.py::test_it_starts_in_a_terminal_of_any_size
13 hidden parts are named with their key
    tests/tui/test_shell_widgets.py::test_long_lines_of_the_log_are_unfolded
14 empty panes name the next step
    tests/tui/test_first_steps.py::test_the_first_screen_asks_for_data_and_lists_what_is_here
    tests/tui/test_app.py::test_no_match_reads_differently_from_no_runs
    tests/tui/panes/chat/test_pane.py::test_a_run_that_saved_nothing_is_not_offered
15 reasons, and no traceback
    tests/tui/test_app.py::test_a_configuration_that_cannot_be_read_is_a_dialog
    tests/tui/panes/config/test_base_model.py
16 temperature in words
    tests/tui/test_shell_widgets.py::test_a_temperature_is_near_its_limit_at_it_or_ok
17 memory in words, and the need before the start
    tests/tui/test_shell_widgets.py::test_memory_is_near_its_limit_from_four_fifths_on
    tests/tui/controllers/test_start_cards.py::test_r_shows_what_a_run_would_do_and_enter_starts_it
18 nothing shown by color alone
    tests/snapshots/test_data_snapshots.py::test_tokens_without_color
19 old samples are dim and say their age
    tests/tui/test_checklist.py::test_figures_of_a_stalled_run_say_how_old_they_are
20 the chart of the loss
    tests/tui/widgets/charts/test_line_chart.py::test_nan_is_a_gap_and_never_a_bound
    tests/tui/widgets/charts/test_line_chart.py::test_raw_values_are_a_line_of_their_own_below_the_smoothed_one
21 glyphs by the locale
    tests/tui/test_shell_widgets.py::test_glyphs_follow_the_locale
    tests/tui/test_driver.py::test_in_the_c_locale_all_is_ascii
22 half the refresh rate by a setting
    tests/tui/test_bridge.py::test_half_the_refresh_rate_looks_half_as_often
23 an idle screen writes nothing
    tests/tui/test_terminal_image.py::test_what_is_there_already_costs_nothing
    tests/tui/test_checklist.py::test_nothing_blinks_or_moves_by_itself
24 few bytes
    tests/tui/test_terminal_bytes.py::test_a_cursor_that_moves_costs_two_kilobytes_at_most
25 themes
    tests/themes/test_loader.py::test_the_themes_that_ship
    tests/themes/test_loader.py::test_high_contrast_is_high
    tests/themes/test_loader.py::test_red_green_blind_eyes_tell_apart_what_colors_mean
    tests/tui/test_app.py::test_a_theme_is_previewed_and_taken_back
26 foreign text is harmless
    tests/tui/test_hostile_text.py::test_the_whole_app_shows_a_hostile_run
27 copied and saved
    tests/tui/panes/chat/test_pane.py::test_copying_the_last_answer
    tests/tui/panes/chat/test_pane.py::test_the_conversation_is_saved_as_markdown
28 the mouse is optional
    tests/test_cli.py::test_the_app_opens_what_was_asked_for
    tests/tui/test_checklist.py::test_every_action_has_a_key_that_is_safe
29 toasts and dialogs
    tests/tui/test_app.py::test_a_control_that_fails_is_a_dialog_and_the_app_goes_on
    tests/tui/controllers/test_run_control.py::test_the_result_is_told_and_not_the_wish
30 the form is checked as it is typed
    tests/tui/test_app.py::test_starting_without_data_says_what_is_missing
    tests/tui/panes/config/test_base_model.py
31 progress, time left, heard at once
    tests/core/runs/test_eta.py
    tests/tui/controllers/test_run_control.py::test_a_key_is_heard_at_once_and_the_same_key_takes_it_back
32 units and a steady width
    tests/tui/test_shell_widgets.py::test_numbers_and_progress_fit
33 a last line, and a sentence without a terminal
    tests/tui/test_app.py::test_an_ended_run_is_named_with_its_outputs
    tests/tui/test_terminal.py::test_no_terminal_is_one_line_and_a_code
"""

from __future__ import annotations

import ast
import re
import time
from functools import cache
from pathlib import Path

import pytest

from tests.tui.harness import has_live_run, press, resize, running, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.keys import KeyTable
from tui.panes import PANES
from tui.panes.train import STALE_SECONDS

ROOT = Path(__file__).resolve().parents[2]
#: Keys that a terminal, tmux or screen keeps for itself, or that some terminals send as another key.
UNSAFE = {
    *("ctrl+b", "ctrl+a", "ctrl+h", "ctrl+i", "ctrl+j", "ctrl+m", "ctrl+space", "ctrl+@", "ctrl+tab", "ctrl+z"),
    "shift+enter",
}


@cache
def _functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_the_tests_of_the_points_are_there() -> None:
    points = [line for line in (__doc__ or "").splitlines() if line[:1].isdecimal()]
    assert [int(point.partition(" ")[0]) for point in points] == list(range(1, 34))
    for test in re.findall("^    (.*)$", __doc__ or "", re.MULTILINE):
        path, _, name = test.partition("::")
        functions = _functions(path)
        assert functions if not name else name in functions, test


def test_every_action_has_a_key_that_is_safe() -> None:
    for key in KeyTable().keys:
        safe = [name for name in key.keys.split(",") if name not in UNSAFE and not name.startswith(("alt+", "shift+"))]
        assert safe, key.id


def test_lists_move_and_search_by_the_usual_keys() -> None:
    keys = KeyTable()
    for scope in ("data", "config", "runs"):
        bound = {name for key in keys.scope(scope) for name in key.keys.split(",")}
        assert {"j", "k", "g", "G", "down", "up", "slash"} <= bound, scope


@pytest.mark.long
async def test_the_footer_and_the_borders_name_few_keys(private_home: Path) -> None:
    ScriptedRun(private_home).train_to(30)
    app = LocaltuneApp()
    async with app.run_test(size=(120, 34)) as pilot:
        await wait_for(pilot, lambda: "loss" in screen_text(app) and app.desktop.panes.find("runs") is not None)
        assert len([key for key in KeyTable().scope("app") if key.footer]) <= 6
        for spec in PANES:
            app.desktop.show_pane(spec.id)
            for size in ((80, 24), (120, 34)):
                await resize(pilot, *size)
                pane = app.desktop.panes.find(spec.id)
                assert pane is not None
                hints = str(pane.border_subtitle or "").split("  ")
                assert len(hints) <= 7, (spec.id, hints)
            await press(pilot, "f1", until="Help")
            await press(pilot, "escape", until=lambda: len(app.screen_stack) == 1)


async def test_ctrl_c_says_how_to_leave(private_home: Path) -> None:
    ScriptedRun(private_home).train_to(3)
    async with running(size=(100, 30), notifications=True, until=has_live_run) as (app, pilot):
        await pilot.press("ctrl+c", "ctrl+c")
        told = "q leaves the app. Training goes on without it."
        await wait_for(pilot, lambda: told in [note.message for note in app._notifications])
        assert [note.message for note in app._notifications].count(told) == 1
        assert app.is_running


async def test_figures_of_a_stalled_run_say_how_old_they_are(private_home: Path) -> None:
    script = ScriptedRun(private_home).train_to(30)
    script.write_state(updated=script.state.updated - 10 * STALE_SECONDS)
    app = LocaltuneApp()
    app.clock = lambda: time.time() + 10 * STALE_SECONDS
    async with app.run_test(size=(120, 34)) as pilot:
        await wait_for(pilot, lambda: "s old" in screen_text(app))
        assert "stalled" in screen_text(app)


async def test_nothing_blinks_or_moves_by_itself(private_home: Path) -> None:
    async with running(size=(120, 34)) as (app, _pilot):
        assert app.animation_level == "none"
        assert not [widget for widget in app.main.query("*") if getattr(widget, "cursor_blink", False)]
