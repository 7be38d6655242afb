"""The start card's lines, without a screen."""

from __future__ import annotations

import re
from array import array
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from core.analysis.problems import Problem
from core.analysis.result import Analysis
from core.config.facts import Unkept
from core.config.schema import Config
from core.presets.provenance import Provenance, ValueGroup
from core.runs.outlook.estimate import EarlyEnd, Estimate
from core.runs.record.store import Run
from tests.cases import cases
from tests.tui.harness import FORBIDDEN, HOSTILE
from tui.keys import KeyTable
from tui.screens.start import LABEL_WIDTH, WARNING_LINES, card_lines, hint_keys
from tui.screens.start_facts import Continuation, Found, Start, StartPlan, StartRows

NOW = 1_764_000_000.0
KEYS = KeyTable()
PRESET = ValueGroup("preset", "cpu-small", {"train.batch_size": 4})


def config(**sections: Any) -> Config:
    given: dict[str, Any] = {"data": {"train": "/data/faq.csv", "eval_share": 0.1}, "model": {"base": "/m/smol"}}
    return Config.model_validate({**given, **sections})


def start(**changes: Any) -> Start:
    return replace(Start(config(), "faq", values=Provenance((PRESET,)), has_form=True), **changes)


def lines(run: Start, found: Found | None = None, width: int = 76) -> dict[str, str]:
    """The lines by their label; warnings together under an empty one."""
    shown: dict[str, str] = {}
    for line in card_lines(run, found or Found(), KEYS, width, NOW):
        label, text = line.plain[:LABEL_WIDTH].strip(), line.plain[LABEL_WIDTH:]
        if line.plain.startswith("!"):
            shown[""] = f"{shown.get('', '')}{line.plain}\n"
        else:
            shown[label] = text
    return shown


HOURS = EarlyEnd("train.max_hours", 6.0, 1200, 3000)
GUESS = Estimate(3000.0, 23, None, "", "guess")
COUNTED = StartRows.counted(200, config(), "reading 35%")
EXACT = StartRows(180, 20, is_exact=True)
METHOD = "qlora rank 16 · learning rate 2e-4 · batch 8"
PASS = "23 steps · 1 pass over the rows"


@cases(
    ("found", "wanted"),
    [
        (Found(), {"data": "faq.csv · …", "dropped": "checking every row …", "steps": "…"}),
        (
            Found(),
            {"night": "no quiet hours, no limits", "measured": "the rows held out, the general probe, 3 answers"},
        ),
        (Found(), {"model": "smol", "method": METHOD, "values": "preset cpu-small", "memory": "…"}),
        (Found(), {"time": "counting rows"}),
        (Found(COUNTED), {"data": "faq.csv · ~180 rows + ~20 held out of the same file"}),
        (Found(COUNTED), {"dropped": "reading 35%", "steps": "~23 steps · 1 pass over the rows"}),
        (
            Found(COUNTED, StartPlan(estimate=Estimate(2400.0, 23, 300.0, "", "plan"))),
            {"time": "~40m 00s", "steps": f"~{PASS} · by the plan: no run like it yet · at most 300 Wh"},
        ),
        (
            Found(COUNTED, StartPlan(estimate=Estimate(21600.0, 3000, None, "faq", early_end=HOURS))),
            {
                "steps": "ends after 6 h by train.max_hours, at about step 1,200 of 3,000 · pace of faq",
                "time": "~6h 00m",
            },
        ),
        (Found(EXACT, StartPlan(estimate=GUESS)), {"steps": f"{PASS} · a guess: no run like it yet"}),
        (
            Found(EXACT, StartPlan(estimate=replace(GUESS, evaluations=1))),
            {"measured": "at the end: 20 rows; before too: the general probe, 3 answers"},
        ),
        (
            Found(EXACT, StartPlan(problem="not known: no model")),
            {"time": "not known before the first steps", "memory": "not known: no model"},
        ),
        (Found(plan=StartPlan(fits=False)), {"memory": "0 B  ✗ does not fit"}),
        # A bound that does not fit says nothing.
        (Found(plan=StartPlan(needed=10**9, fits=False, is_rough=True)), {"memory": "roughly 1.0 GB"}),
    ],
)
def test_a_line_says_what_is_known_so_far(found: Found, wanted: dict[str, str]) -> None:
    shown = lines(start(), found, 100)
    assert {label: shown[label] for label in wanted} == wanted


def test_where_everything_is_known_each_line_has_its_figures() -> None:
    analysis = Analysis((), 203, 180, {"held_out": 20, "not_json": 2, "overlong": 1}, ())
    plan = StartPlan(
        135_000_000, 1_200_000_000, 23_000_000_000, True,
        estimate=Estimate(
            80.0, 23, 0.42, "20261124-143600-faq", between_seconds=24.0, evaluations=5, evaluation_seconds=15.0, runs=3
        ),
    )  # fmt: skip
    shown = lines(start(), Found(StartRows.analyzed(analysis), plan), 100)
    assert shown["data"] == "faq.csv · 180 rows + 20 held out of the same file"
    assert shown["dropped"] == "! 3 dropped: 2 no JSON, 1 longer than train.max_length · ! shows them"
    assert shown["model"] == "smol · 135 million parameters"
    assert shown["steps"] == f"{PASS} · pace of 3 runs · 0.4 Wh"
    assert shown["time"] == "~1m 20s = 23 steps ~56s + 5 evaluations ~15s + loading and saving ~9s"
    assert shown["measured"] == "5 times: 20 rows; before too: the general probe, 3 answers"
    assert shown["night"] == "no quiet hours, no limits", "when it ends is no question of a night"
    measured = start(config=config(eval={"baseline": True, "probe": False}))
    shown_too = lines(measured, Found(StartRows.analyzed(analysis), plan), 100)["measured"]
    assert shown_too == "before and 4 times: 20 rows, 3 answers"
    assert lines(start(), Found(plan=plan), 72)["time"] == "~1m 20s = steps ~56s + evaluations ~15s + loading ~9s"
    assert shown["memory"] == "1.2 GB of 23.0 GB free  ✓ fits"
    assert "" not in shown or "!" not in shown[""]


@cases(
    ("asked", "said"),
    [
        ({"exact_match": True}, "before and 12 times: 20 rows, an answer to each, the probe"),
        ({"prompts": "/p.jsonl"}, "before and 12 times: 20 rows, the probe, eval.prompts"),
        ({"prompts": "/p.jsonl", "baseline": False}, "13 times: 20 rows; before too: the probe, eval.prompts"),
    ],
)
def test_lines_of_a_further_run_are_whole_at_80_columns(asked: dict[str, Any], said: str) -> None:
    found = Found(EXACT, StartPlan(estimate=replace(GUESS, evaluations=13)))
    model = {"base": "/m/smol", "adapter": "/h/runs/20261124-143600-faq/adapter"}
    further = start(config=config(eval={"baseline": True, **asked}, model=model, train={"objective": "dpo"}))
    shown = lines(further, found, 72)
    assert shown["measured"] == said
    assert shown["further"] == "143600-faq · new optimizer · the reference is the base"


def test_a_run_on_corrections_says_so() -> None:
    given = config(model={"base": "/m/smol", "adapter": "/h/runs/20261124-143600-faq/adapter"})
    taught = start(config=given.with_options(data={"corrections": "/c.jsonl"}))
    assert lines(taught, Found(), 72)["further"] == "143600-faq · on its corrections · new optimizer and schedule"


def test_nothing_moves_as_facts_come_in() -> None:
    wish = Unkept("night.deadline", "07:00 cannot be met.", "Set 08:45 or later.", is_measured=True)
    doubts, plan = StartRows(doubts=("one", "two")), StartPlan(advice="less", unmet=(wish,))
    warned = Found(doubts, plan, ("three", "four"))
    refused = Found(StartRows(refusal="odd.csv has rows of no known format: " * 2), warnings=("another",))
    counts = {len(card_lines(start(), found, KEYS, 76, NOW)) for found in (Found(), warned, refused)}
    assert len(counts) == 1
    shown = lines(start(), warned)[""].splitlines()
    assert shown == ["! 07:00 cannot be met. Set 08:45 or later.", "! less", "! 4 more warnings"]
    assert len(shown) == WARNING_LINES


def test_a_long_warning_takes_the_lines_that_are_free() -> None:
    long = "train.max_length is 2048, and the model was made for rows of 512 tokens at most. Set it to 512."

    def shown(*warnings: str) -> list[str]:
        found = Found(StartRows(), StartPlan(), warnings)
        return [line.plain for line in card_lines(start(), found, KEYS, 76, NOW)[-WARNING_LINES:]]

    alone = shown(long)
    assert [line[:2] for line in alone] == ["! ", "  ", ""]
    assert " ".join(line[2:] for line in alone).strip() == long
    among = shown("one", long, "three")
    assert [line[:5] for line in among] == ["! one", "! tra", "! thr"]
    assert among[1].endswith("…")


@cases(
    ("data", "held_out", "shown"),
    [
        ({"train": "a.csv", "eval": "b.csv"}, None, "a.csv · ~30 rows + the rows of b.csv"),
        ({"train": "a.csv", "eval": "b.csv"}, 80, "a.csv · 30 rows + 80 rows of b.csv"),
        ({"train": "a.csv", "eval": ["b.csv", "c.csv"]}, 0, "a.csv · 30 rows + 0 rows of b.csv and 1 more"),
        ({"train": "a.csv", "eval": "hf://datasets/me/faq"}, 1, "a.csv · 30 rows + 1 row of hf://datasets/me/faq"),
        (
            {"train": ["a.csv", "b"], "eval_share": 0.1},
            None,
            "a.csv and 1 more · ~27 rows + ~3 held out of the same files",
        ),
        ({"train": "hf://datasets/a", "eval_share": 0.1}, 3, "hf://datasets/a · 30 rows + 3 held out of the same data"),
        ({"train": "/d/rows", "eval_share": 0.1}, 3, "rows · 30 rows + 3 held out of the same data"),
        ({"train": "a.csv", "eval_share": 0.1}, 0, "a.csv · 30 rows, none held out: nothing is measured"),
        ({"train": "a.csv"}, None, "a.csv · ~30 rows, none held out: nothing is measured"),
    ],
)
def test_whose_rows_are_held_out(data: dict[str, Any], held_out: int | None, shown: str) -> None:
    run = start(config=config(data=data), former="tickets" if "eval" in data else "")
    rows = StartRows.counted(30, run.config) if held_out is None else StartRows(30, held_out, is_exact=True)
    assert lines(run, Found(rows))["data"] == shown
    assert ("start.former" in hint_keys(run, rows)) == bool(run.former)


def test_long_names_leave_room_for_the_rows() -> None:
    data = {"train": f"/d/{'training-' * 9}.jsonl", "eval": f"/d/{'measured-' * 9}.jsonl"}
    run = start(config=config(data=data))
    shown = lines(run, Found(StartRows(1234, 80, is_exact=True)), 54)
    assert shown["data"] == "training-tr… · 1,234 rows + 80 rows of meas…"


USER = ValueGroup("user", "", {"train.learning_rate": 0.002, "train.epochs": 3.0, "night.quiet_hours": None})
ROWS = ValueGroup("rows", "", {"data.eval_share": 0.1, "eval.every_epochs": 0.25})
RUN = ValueGroup("run", "20261124-053518-korvo", dict.fromkeys([f"a.{n}" for n in range(8)]))
LORA = ValueGroup("user", "", {"method.name": "lora"})
GONE = "053518-korvo"
BEGUN = "preset cpu-small · 2 for the rows"
FILE = ValueGroup("file", "mine.toml", {"train.learning_rate": 3e-4})


@cases(
    ("groups", "is_chosen", "width", "shown"),
    [
        ((), False, 72, "the defaults hold · P chooses a preset"),
        ((PRESET, ROWS), True, 72, "preset cpu-small · 2 for the rows · P shows why"),
        ((PRESET, ROWS), True, 44, "preset cpu-small · 2 for the rows"),
        ((PRESET, ROWS, USER), True, 99, f"{BEGUN} · you: learning_rate 0.002, epochs 3, quiet_hours none"),
        ((PRESET, ROWS, USER), True, 86, f"{BEGUN} · you: learning_rate, epochs, quiet_hours"),
        ((PRESET, ROWS, USER), True, 76, f"{BEGUN} · you: learning_rate and 2 more"),
        ((PRESET, ROWS, USER), True, 60, f"{BEGUN} · you: 3 values"),
        ((RUN,), False, 72, "run 053518-korvo: 8 values"),
        ((RUN, USER), False, 76, "run 053518-korvo: 8 values · you: learning_rate, epochs and 1 more"),
        ((FILE,), False, 72, "mine.toml: learning_rate 3e-4"),
        ((ValueGroup("user", "qlora.yml", {"train.epochs": 3.0}),), False, 72, "qlora.yml or you: epochs 3"),
        ((ValueGroup("user", "20261124-053518-korvo", {"train.epochs": 3.0}),), False, 72, f"{GONE} or you: epochs 3"),
        ((FILE, LORA), False, 72, "mine.toml: learning_rate 3e-4 · you: method.name lora"),
    ],
)  # fmt: skip
def test_where_the_values_come_from(groups: tuple[ValueGroup, ...], is_chosen: bool, width: int, shown: str) -> None:
    run = start(values=Provenance(groups, is_chosen))
    assert lines(run, width=width)["values"] == shown
    assert lines(replace(run, is_choosing=True))["values"] == "a preset is being chosen for model, card and rows …"


@cases(
    ("hour", "options", "shown"),
    [
        (23, {"quiet_hours": "22:00-07:00"}, "quiet 22:00-07:00: waits until 07:00 · ends about 08:00"),
        (21, {"quiet_hours": "21:30-07:00"}, "quiet 21:30-07:00: pauses in them · ends about 07:30"),
        (23, {"quiet_hours": "22:00-07:00", "quiet_power_w": 200}, "quiet 22:00-07:00 with 200 W · ends about 00:00"),
        (12, {"quiet_hours": "22:00-07:00"}, "quiet 22:00-07:00 · ends about 13:00"),
        (12, {"deadline": "07:00"}, "ends about 13:00 · done by 07:00"),
        (12, {}, "ends about 13:00"),
    ],
)
def test_when_the_night_lets_the_run_begin_and_end(hour: int, options: dict[str, Any], shown: str) -> None:
    now = datetime(2026, 1, 15, hour).timestamp()
    run, found = start(config=config(night=options)), Found(EXACT, StartPlan(estimate=replace(GUESS, seconds=3600.0)))
    labels = {line.plain[:LABEL_WIDTH].strip(): line.plain for line in card_lines(run, found, KEYS, 100, now)}
    assert re.sub(r" (Thu|Fri)", "", labels["night"][LABEL_WIDTH:]) == shown


def test_rows_worth_a_look_lead_to_them() -> None:
    problems = (
        Problem("duplicate", 4, (), array("q", range(4))),
        Problem("format_ambiguous", 9, (), array("q"), "unclear"),
    )
    found = StartRows.analyzed(Analysis((), 9, 9, {}, problems))
    shown = lines(start(), Found(found))
    assert shown["dropped"] == "none · 4 rows are worth a look · ! shows them"
    assert "start.rows" in hint_keys(start(), found)
    assert "start.rows" not in hint_keys(start(has_form=False), found)
    several = start(config=config(data={"train": ["/data/a.csv", "/data/b.csv"]}))
    assert lines(several, Found(found))["data"] == "a.csv and 1 more · 9 rows, none held out: nothing is measured"
    assert "shows them" not in lines(several, Found(found))["dropped"], "the Data pane shows one file"
    assert len(found.doubts) == 1


def test_a_run_that_goes_on_says_from_where_and_until_when() -> None:
    rest = Continuation(Run(Path("20261124-143600-faq")), "stopped", 40, NOW - 60, 120, 43)
    run = start(continuation=rest, values=None, has_form=False)
    shown = lines(run, Found(plan=StartPlan(needed=10**9, fits=None, seconds_left=7200.0)))
    assert shown["run"] == "20261124-143600-faq · stopped"
    assert shown["from"].startswith("step 40 of 120, saved ")
    assert shown["left"] == "80 steps · 3 of them done before and not saved"
    assert shown["time"] == "~2h 00m · at its pace, evaluations included"
    assert shown["night"].startswith("ends about ")
    assert list(hint_keys(run, StartRows())) == ["start.start", "start.back"]
    unknown = replace(rest, total=0, saved=None, done=40)
    shown = lines(replace(run, continuation=unknown), Found(plan=StartPlan(seconds_left=7200.0)))
    assert (shown["from"], shown["left"]) == ("step 40", "not known")
    assert shown["time"] == "not known before the next steps"


@cases("width", [20, 54, 88])
def test_hostile_names_stay_in_their_line(width: int) -> None:
    name = HOSTILE.replace("\x00", "").replace("/", "")
    sections = {"data": {"train": f"/data/{name}" * 5}, "model": {"base": f"/m/{name}" * 9}}
    values = Provenance(
        (ValueGroup("file", HOSTILE, {"eval.prompts": HOSTILE * 9}), ValueGroup("run", HOSTILE, {"a": 1}))
    )
    run = start(config=config(**sections), values=values, notes=(HOSTILE,))
    found = Found(
        StartRows(progress=HOSTILE), StartPlan(problem=HOSTILE, estimate=Estimate(1.0, 1, None, HOSTILE)), (HOSTILE,)
    )
    for line in card_lines(run, found, KEYS, width, NOW):
        assert not FORBIDDEN & set(line.plain)
        assert "\n" not in line.plain
        assert line.cell_length <= max(width, 30)
