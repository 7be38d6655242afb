"""The memory plan of the configuration being edited."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from core.analysis.result import Analysis, Lengths, measure_lengths
from core.config.document import ConfigDocument
from core.errors import UserError
from core.hardware.snapshot import Device
from core.quantization import job
from core.quantization.result import ROWS, sentence
from core.runs.outlook import estimate as pace
from core.runs.outlook.estimate import PaceBook, estimate_words
from core.runs.outlook.forecast import this_machine
from core.runs.record.events import HardwareEvent
from core.runs.record.store import Run, list_runs
from tests.cases import cases
from tests.core.models.architecture import published
from tests.core.quantization.test_result import COST
from tests.core.runs.test_estimate import record, step
from tests.tui.config_panes import config_pane, type_value
from tests.tui.harness import pane_of, running, screen_lines, screen_text, wait_for
from tui.panes.config.facts import FactsFinder, plan_document
from tui.panes.config.model import ConfigModel
from tui.screens.start_facts import find_plan
from tui.widgets.charts.plan_bar import PlanBar, PlanView, draw_plan, whole_plan

LLAMA = json.dumps(published.LLAMA_3_8B)


def document(directory: Path, model: str, text: str = "") -> ConfigDocument:
    (directory / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    return ConfigDocument(f'data.train = "rows.jsonl"\nmodel.base = "{model}"\n{text}', directory / "mine.toml")


def model(directory: Path) -> Path:
    (directory / "base").mkdir()
    (directory / "base" / "config.json").write_text(LLAMA)
    return directory / "base"


def planned(
    made: ConfigDocument, paces: PaceBook | None = None, count: int | None = None, lengths: Lengths | None = None
) -> PlanView:
    """The plan of a configuration that has one; a rough one, as measuring the model takes seconds."""
    view = plan_document(made, paces, count, lengths, "known")
    assert view is not None
    return view


def test_what_4_bits_cost_stays_below_the_plan_while_the_configuration_is_the_same(tmp_path: Path) -> None:
    made = document(tmp_path, str(model(tmp_path)), 'hardware.device = "cpu"\n')
    config = made.validate()
    key = job._key(config, ROWS)
    assert key is not None
    assert planned(made).bits == ""
    job._keep(key, COST.to_dict())
    view = planned(made)
    assert view.bits == sentence(COST)
    for width in (40, 78, 200):
        lines = draw_plan(view, width).plain.splitlines()
        said = " ".join(line for line in lines if line and line in sentence(COST))
        assert sentence(COST).startswith(said)
        assert said.startswith("4 bits cost 0.21 nats")
        assert all(len(line) <= width for line in lines)
    made.set("method.name", "lora")
    assert planned(made).bits == ""


def test_the_bar_and_the_start_card_say_the_same(
    tmp_path: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = document(tmp_path, str(model(tmp_path)), 'hardware.device = "cpu"\ntrain.max_length = 2048\n')
    # The free memory depends on other programs.
    machine = replace(this_machine(made.validate()), limit_bytes=24 << 30)
    monkeypatch.setattr("core.runs.outlook.forecast.this_machine", lambda _: machine)
    measured = measure_lengths([100] * 60, range(60), 6000, 3000)
    analysis = Analysis((), 60, 60, {}, (), lengths=measured)
    unknown, known = planned(made), planned(made, None, 60, measured)
    assert re.search(r"~\S+ GB of .*, for rows of 2,048 tokens", draw_plan(replace(unknown, is_rough=False), 100).plain)
    assert "tokens at once" in draw_plan(known, 100).plain
    assert "~" not in draw_plan(known, 100).plain
    assert known.time.endswith(" · a guess: no run of this kind yet")
    assert known.total < unknown.total
    assert find_plan(made.validate(), analysis, 60, PaceBook(()), "known").needed == known.total
    guess = find_plan(made.validate(), None, 60, PaceBook(()), "known")
    assert (guess.needed, guess.is_guess) == (unknown.total, True)


def test_time_is_by_the_plan_without_an_earlier_run(
    tmp_path: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Device(index=0, kind="cuda", name="NVIDIA GeForce RTX 4090", memory_total=24 << 30, power_limit_w=450.0)
    monkeypatch.setattr("core.hardware.sampler.snapshot", lambda **_: [card])
    monkeypatch.setattr("core.hardware.torch_check.obstacle_here", lambda _gpu: None)
    made = document(tmp_path, str(model(tmp_path)))
    measured = measure_lengths([100] * 60, range(60), 6000, 3000)
    unknown, known = planned(made, None, 60), planned(made, None, 60, measured)
    assert unknown.time == "", "rows of train.max_length would take many times as long"
    assert re.fullmatch(r"about [\d.]+s · at most 0\.\d Wh · by the plan \(no run of this kind yet\)", known.time), (
        known.time
    )
    found = find_plan(made.validate(), Analysis((), 60, 60, {}, (), lengths=measured), 60, PaceBook(()), "known")
    assert found.estimate is not None
    assert (found.estimate.by, found.estimate.run, found.estimate.steps) == ("plan", "", 8)
    assert found.estimate.watt_hours == pytest.approx(found.estimate.seconds * 450 / 3600)
    assert find_plan(made.validate(), None, 60, PaceBook(()), "known").estimate is None
    assert estimate_words(found.estimate).duration in known.time


def test_the_lengths_of_the_data_pane_count_for_the_file_that_is_trained_on(tmp_path: Path, private_home: Path) -> None:
    made = document(tmp_path, str(model(tmp_path)), 'hardware.device = "cpu"\n')
    finder, rows, model_of = FactsFinder(), tmp_path / "rows.jsonl", ConfigModel(made)
    finder.rows[rows] = 60
    measured = Analysis((), 60, 58, {"empty": 2}, (), lengths=measure_lengths([100] * 60, range(60), 6000, 3000))
    said = []
    for path, analysis in ((rows, measured), (tmp_path / "other.jsonl", measured), (rows, None)):
        finder.take_analysis(model_of, path, analysis)
        finder.facts_for(model_of)
        view = finder.plan(made, False)
        assert view is not None
        said.append(("at once" in view.rows, finder.rows_of(model_of)))
    # Another file that is looked at changes nothing.
    assert said == [(True, (58, 0)), (True, (58, 0)), (False, (60, 0))]
    steps = [model_of.summary((58, 0), is_exact=is_exact).rpartition(" · ")[2] for is_exact in (False, True)]
    assert steps == ["about 8 steps", "8 steps"]
    finder.take_analysis(model_of, rows, measured)
    made.set("data.eval_share", 0.1)
    assert finder.rows_of(model_of) == (54, 6), "the rows are not read as they were analyzed"


async def test_the_data_pane_shows_what_it_knows_of_lengths(home: Path) -> None:
    async with running(size=(120, 40)) as (app, pilot):
        taken: list[Path] = []
        pane_of(app, "config").take_analysis = lambda path, _: taken.append(path)
        pane_of(app, "data").action_open_sample()
        await wait_for(pilot, lambda: bool(taken))
        assert taken[-1] == pane_of(app, "data").view.path


def test_gpus_that_are_not_here_are_planned_without_a_limit_and_each_by_itself(tmp_path: Path) -> None:
    text = 'hardware.device = "cuda"\ndistributed.processes = 2\n'
    view = planned(document(tmp_path, str(model(tmp_path)), text))
    assert (view.limit, view.fits) == (None, None)
    assert view.rows.endswith(", on each of 2 cards")
    assert "all_reduce" in dict(view.parts)


def test_what_cannot_be_planned_yet_has_no_plan(tmp_path: Path) -> None:
    assert plan_document(document(tmp_path, "not-here")) is None
    (tmp_path / "tokenizer").mkdir()
    assert plan_document(document(tmp_path, str(tmp_path / "tokenizer"))) is None
    base = model(tmp_path)
    assert plan_document(document(tmp_path, str(base), "train.epochs = -1\n")) is None
    (base / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(UserError, match="of the architecture nothing-known, which transformers"):
        plan_document(document(tmp_path, str(base)))


def run_of(configuration: ConfigDocument, seconds: float = 2.0) -> str:
    """A run of it that has ended, of five steps."""
    events = [
        *(step(number, seconds=seconds) for number in range(1, 6)),
        HardwareEvent(t=6.0, devices=[], energy_wh=5.0),
    ]
    return record(configuration.validate(), events)


def test_it_says_how_long_it_takes_by_the_last_run_alike(tmp_path: Path, private_home: Path) -> None:
    made = document(tmp_path, str(model(tmp_path)), 'hardware.device = "cpu"\ntrain.batch_size = 8\ntrain.epochs = 1\n')
    run = run_of(made)
    view = planned(made, PaceBook(), 800)
    assert view.time == f"about 3m 20s · 100 Wh · at the pace of {run}"
    made.set("train.max_hours", 0.05)
    cut = planned(made, PaceBook(), 800)
    end = "ends after 0.05 h by train.max_hours, at about step 90 of 100"
    assert cut.time == f"about 3m 00s · 90 Wh · {end} · at the pace of {run}"
    assert planned(made, None, 800).time == planned(made, PaceBook(), None).time == ""


async def test_the_pane_reads_the_runs_once_and_again_when_one_ends(
    tmp_path: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.toml"
    made = document(tmp_path, str(model(tmp_path)), 'hardware.device = "cpu"\n[train]\nmax_steps = 100\n')
    path.write_text(made.dumps())
    first = run_of(made)
    listed: list[str] = []

    def count(*_: object) -> list[Run]:
        listed.append("")
        return list_runs()

    monkeypatch.setattr(pace, "list_runs", count)
    async with config_pane(path, size=(80, 24)) as (pilot, pane):
        bar = pane.query_one(PlanBar)
        await wait_for(pilot, lambda: bar.plan is not None and first in bar.plan.time)
        await wait_for(pilot, lambda: f"about 3m 20s · 100 Wh · at the pace of {first}" in screen_text(pilot.app))
        await type_value(pilot, pane, "train.max_steps", "50")
        await wait_for(pilot, lambda: "about 1m 40s · 50 Wh" in screen_text(pilot.app))
        assert len(listed) == 1
        run_of(made, seconds=20.0)
        pane.run_ended()
        await wait_for(
            pilot, lambda: "about 9m 10s · 28 Wh · at the median pace of 2 earlier runs" in screen_text(pilot.app)
        )
        assert len(listed) == 2
        for size in ((80, 24), (200, 50)):
            await pilot.resize_terminal(*size)
            await wait_for(
                pilot, lambda: "about 9m 10s · 28 Wh · at the median pace of 2 earlier runs" in screen_text(pilot.app)
            )
            assert {line[-1] for line in screen_lines(pilot.app)[1:-1]} == {"│"}


@cases("words", ["measuring the model, 3 s", "The model cannot be read. " * 7])
@cases("width", [12, 76, 196])
def test_words_without_a_plan_take_the_room_of_one(words: str, width: int) -> None:
    drawn = draw_plan(PlanView((), 0, advice=(words,)), width).split("\n")
    assert len(drawn) == 4
    assert all(line.cell_length <= width for line in drawn)
    said = " ".join(line.plain for line in drawn[1:]).split()
    assert said == words.split()[: len(said)]
    assert "0 B" not in " ".join(said)
    if width >= 76:
        assert len(said) == len(words.split())


def test_the_legend_names_the_largest_parts_and_sums_up_the_rest() -> None:
    parts = {"linear_weights": 3_400_000_000, "norms": 141_000, "activations": 1_800_000_000, "context": 5_000_000}
    view = PlanView([*parts.items()], sum(parts.values()), 22_900_000_000, True)
    legend = draw_plan(view, 60).plain.split("\n")[1]
    assert legend.split() == ["█", "weights", "3.4", "GB", "▓", "activations", "1.8", "GB", "+", "5.1", "MB"]
    six = PlanView([(f"part {number}", 10**9) for number in range(6)], 6 * 10**9)
    many = draw_plan(six, 90).plain.split("\n")[1]
    assert [piece for piece in many if piece in "█▓▒░"] == list("█▓▒░"), "each fill once"
    assert many.rstrip().endswith("+ 2.0 GB")
    assert draw_plan(six, 120).plain.split("\n")[1].endswith("+ 2.0 GB: part 4 1.0 GB, part 5 1.0 GB")
    assert draw_plan(six, 90, "d").plain.split("\n")[1].rstrip().endswith("+ 2.0 GB (d)"), "the key that names them"
    everything = draw_plan(view, 120).plain.split("\n")[1]
    assert "context 5.0 MB" in everything
    assert "norms 141 kB" in everything
    for width in range(12, 130):
        assert all(line.cell_length <= width for line in draw_plan(view, width, "d").split("\n"))


def test_the_whole_plan_cuts_nothing() -> None:
    parts = [(f"part {number}", (9 - number) * 10**9) for number in range(8)]
    advice = [f"Set option_{number} to save {number} GB: {'it takes longer, ' * 9}or not." for number in range(4)]
    view = PlanView(parts, 44 * 10**9, 22_900_000_000, False, advice, "about 3 h", "4 rows of 2,048 tokens at once")
    for width in (56, 120):
        lines = [line if isinstance(line, str) else line.plain for line in whole_plan(view, width)]
        assert all(len(line.rstrip()) <= width for line in lines)
        words = " ".join(" ".join(lines).split())
        assert all(f"{name} {9 - number}.0 GB" in words for number, (name, _) in enumerate(parts))
        assert "✗ does not fit" in words
        assert all(part in words for part in ("about 3 h", *advice))


@cases("option", ["train.batch_size", "train.epochs", "train.max_steps", "data.eval_share"])
@cases("value", ["1" + "0" * 400, "-1", "inf", "nan", "true", '"many"'])
def test_no_value_is_too_large_for_the_summary(tmp_path: Path, option: str, value: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    document = ConfigDocument('data.train = "rows.jsonl"\n' + f"{option} = {value}\n", tmp_path / "mine.toml")
    model = ConfigModel(document)
    assert model.findings().problems
    assert "rows.jsonl" in model.summary((100, 0))
    assert model.held_out(100) == 0


async def test_what_the_device_cannot_keep_is_a_finding_of_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def read(device: str, gpu: str | None) -> Device:
        asked.append((device, gpu))
        return Device(index=0, kind="cpu", name="Some CPU")

    monkeypatch.setattr("core.hardware.sampler.read_device", read)
    document = ConfigDocument('[data]\ntrain = "rows.jsonl"\n[night]\nenergy_kwh = 1.0\n')
    finder = FactsFinder()
    assert not document.remarks(finder.facts), "nothing is known of the device yet"
    await finder.find_card("cpu", None)
    assert asked == [("cpu", None)]
    (remark,) = document.remarks(finder.facts)
    assert remark.options == ("night.energy_kwh",)
    assert remark.sentence == "Some CPU does not report its power, so night.energy_kwh cannot be kept."
