"""Start card: the lines about a run before it starts, and the dialog; only enter starts the run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from textual import events, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.worker import get_current_worker

from core.analysis.job import AnalysisJob
from core.analysis.result import Analysis
from core.config.derived import holds_out, step_count
from core.config.schema import Config, options
from core.errors import UserError
from core.governor.limits import Limits
from core.governor.night import working_span
from core.governor.plan import day_time
from core.hub_uri import is_hub_entry
from core.jobs.job import JobCancelledError, JobDiedError, JobProgress
from core.models.architecture.measuring import telling
from core.presets.provenance import Provenance, ValueGroup
from core.runs.catalog.rows import parent_of
from core.runs.outlook.energy import expected_energy
from core.runs.outlook.estimate import rounded_duration, tell_early_end
from core.runs.record.sentences import brief_id, change_words
from core.text import one_line
from core.units import exact_number, format_bytes, format_count, format_moment
from tui.datasets.summary import counted, describe_dropped
from tui.keys import KeyTable, bindings
from tui.screens.overlay import Overlay
from tui.screens.start_facts import (
    Continuation,
    Found,
    SeenRows,
    Start,
    StartPlan,
    StartRows,
    analysis_job,
    find_flaw,
    find_warnings,
    plan_of,
)
from tui.shell import shell_of
from tui.widgets.charts.plan_bar import about_words, fit_words
from tui.widgets.forms.ask_bar import AnswerKeys
from tui.widgets.forms.option_field import format_value
from tui.widgets.strips import fit, style_of
from tui.widgets.text_block import TextBlock, clip

#: Columns of the labels.
LABEL_WIDTH = 10
#: Lines kept free for warnings, so that none of the others moves when one is found.
WARNING_LINES = 3
#: Columns of the longest names of files, tried in order until the line has room.
_NAME_WIDTHS = (40, 30, 20, 12)
#: Columns of the longest value shown beside the name of its option, and the most options that are listed.
_VALUE_WIDTH, _MOST_LISTED = 24, 12
#: Ends of the names of options that limit the device or end the night.
_LIMITS = ("_limit_c", "power_limit_w", "deadline", "energy_kwh")
#: Seconds below which the line of the night leaves out the end of a run without limits.
_SHORT_SECONDS = 3600


def card_lines(start: Start, found: Found, keys: KeyTable, width: int, now: float) -> list[Content]:
    """Lines of a card, always the same number: a labeled line for each fact, then the warnings.

    Args:
        start: The run.
        found: The facts so far.
        keys: The key table with the user's changes.
        width: Columns.
        now: The present, in Unix seconds.
    """
    room = max(width - LABEL_WIDTH, 20)
    plan = found.plan
    lines: list[tuple[str, Content]] = []
    goes_on = start.continuation
    if goes_on is not None:
        lines.append(("run", Content(f"{one_line(goes_on.run.id, 60)} · {goes_on.state}")))
    lines.append(("data", Content(_data(start, found.rows, room))))
    if goes_on is None:
        lines.append(("dropped", _dropped(start, found.rows, keys, room)))
    if start.values is not None:
        lines.append(("values", Content(_values(start, start.values, keys, room))))
    if goes_on is not None:
        lines += [("from", Content(_from(goes_on))), ("left", Content(_left(goes_on)))]
    lines.append(("time", _time(plan, found.rows, room) if goes_on is None else _rest(goes_on, plan)))
    lines.append(("night", _night(start.config, plan, now)))
    lines.append(("model", Content(_model(start.config, plan))))
    if parent := _parent(start.config):
        reference = " · the reference is the base" if start.config.train.objective in ("dpo", "kto") else ""
        taught = " · on its corrections" if start.config.data.corrections is not None else ""
        told = (
            f"{parent}{taught}{new}{reference}" for new in (" · new optimizer and schedule", " · new optimizer", "")
        )
        lines.append(("further", Content(_fitting([*told], room))))
    lines.append(("method", Content(_method(start.config))))
    if goes_on is None:
        lines.append(("steps", Content(_steps(start.config, found, room))))
        measured = _measured(start.config, found)
        brief = measured.replace("general ", "")
        lines.append(("measured", Content(_fitting([measured, brief, brief.replace("answers to ", "")], room))))
    lines.append(("memory", _memory(plan)))
    shown = [
        Content.assemble((fit(label, LABEL_WIDTH), "$muted"), text.truncate(room, ellipsis=True))
        for label, text in lines
    ]
    return [*shown, Content(""), *_warning_lines(start, found, width)]


def _warning_lines(start: Start, found: Found, width: int) -> list[Content]:
    """Warnings: the first may wrap as far as there is room, and the last line counts the rest."""
    if found.rows.refusal:
        told = Content.styled(f"✗ Nothing starts: {one_line(found.rows.refusal, 600)}", "$limit")
        refused = clip(told, width, WARNING_LINES).wrap(width)
        return [*refused, *[Content("")] * (WARNING_LINES - len(refused))]
    texts = [*found.rows.doubts, *start.notes, *found.warnings]
    if found.plan is not None and found.plan.advice:
        texts.insert(0, found.plan.advice)
    if found.plan is not None:
        texts[:0] = [str(wish) for wish in found.plan.unmet]
    if found.flaw:
        texts.insert(0, f"The run would be refused: {found.flaw}")
    more = len(texts) - WARNING_LINES + 1 if len(texts) > WARNING_LINES else 0
    if more:
        texts = texts[: WARNING_LINES - 1]
    lines: list[Content] = []
    spare = WARNING_LINES - len(texts) - bool(more)
    for text in texts:
        new = [Content.styled(line, "$near") for line in _warning(one_line(text), width, spare + 1)]
        spare -= len(new) - 1
        lines += new
    if more:
        lines.append(Content.styled(f"! {counted(more, 'more warning')}", "$near"))
    return [*lines, *[Content("")] * (WARNING_LINES - len(lines))]


def _warning(text: str, width: int, most: int) -> list[str]:
    """A warning in at most ``most`` lines, indented after the first."""
    lines = clip(Content(text), max(width - 2, 2), most).wrap(max(width - 2, 2))
    return [("! " if not place else "  ") + line.plain.rstrip() for place, line in enumerate(lines)]


def _data(start: Start, rows: StartRows, room: int) -> str:
    """The training files with their number of rows, and the held-out rows with their source."""
    if start.continuation is not None or (rows.used is None and rows.refusal):
        return _fitting([_names(start.train, width) for width in _NAME_WIDTHS], room)
    count = "…" if rows.used is None else f"{'' if rows.is_exact else '~'}{counted(rows.used, 'row')}"
    texts = (f"{_names(start.train, width)} · {count}{_held_out(start, rows, width)}" for width in _NAME_WIDTHS)
    return _fitting([*texts], room)


def _held_out(start: Start, rows: StartRows, width: int) -> str:
    """The number of held-out rows and their source, to follow the training rows."""
    data, about = start.config.data, "" if rows.is_exact else "~"
    if data.eval is not None:
        # Their number is known once they have been read.
        count = counted(rows.held_out, "row") if rows.is_exact else "the rows"
        return f" + {count} of {_names([data.eval] if isinstance(data.eval, str) else data.eval, width)}"
    if not data.eval_share or (rows.used is not None and not rows.held_out):
        return ", none held out: nothing is measured"
    if rows.used is None:
        return ""
    first = start.train[0]
    is_file = not is_hub_entry(first) and "#" not in first and Path(first).suffix
    noun = "files" if len(start.train) > 1 else "file" if is_file else "data"
    return f" + {about}{format_count(rows.held_out)} held out of the same {noun}"


def _names(entries: Sequence[str], width: int) -> str:
    """The name of the first entry, and the number of other entries."""
    first = one_line(str(entries[0]) if is_hub_entry(entries[0]) else Path(entries[0]).name, width)
    return first if len(entries) == 1 else f"{first} and {len(entries) - 1} more"


def _fitting(texts: Sequence[str], room: int) -> str:
    """The first text that fits, or else the last."""
    return next((text for text in texts if Content(text).cell_length <= room), texts[-1])


def _values(start: Start, values: Provenance, keys: KeyTable, room: int) -> str:
    """Sources of the values, as detailed as fits."""
    if start.is_choosing:
        return "a preset is being chosen for model, card and rows …"
    if not values.groups:
        chooses = f" · {keys['start.presets'].display} chooses a preset" if start.has_form else ""
        return f"the defaults hold{chooses}"
    most = min(max(len(group.values) for group in values.groups), _MOST_LISTED)
    forms = [(most, True), *((listed, False) for listed in range(most, -1, -1))]
    texts = [" · ".join(_group(group, *form) for group in values.groups) for form in forms]
    why = f" · {keys['start.presets'].display} shows why" if values.is_chosen and start.has_form else ""
    return _fitting([f"{texts[0]}{why}", *texts], room)


def _group(group: ValueGroup, listed: int, with_values: bool) -> str:
    """A source with its values: names for the user's and the file's first values, a number for the others."""
    count = len(group.values)
    match group.source:
        case "preset":
            return f"preset {group.name}"
        case "rows":
            return f"{count} for the rows"
        case "model":
            return f"{count} for the model"
        case "run":
            return f"run {brief_id(group.name)}: {counted(count, 'value')}"
    label = one_line(group.name, 28)
    if group.source == "user":
        label = f"{one_line(brief_id(group.name), 28)} or you" if group.name else "you"
    if not listed:
        return f"{label}: {counted(count, 'value')}"
    first = list(group.values.items())[:listed]
    shown = [f"{_option(name)} {_shown(value)}" if with_values else _option(name) for name, value in first]
    more = f" and {count - listed} more" if count > listed else ""
    return f"{label}: {', '.join(shown)}{more}"


def _option(name: str) -> str:
    """The name of an option: its key alone if that is unique."""
    key = name.partition(".")[2]
    return key if sum(option.key == key for option in options()) == 1 else name


def _shown(value: object) -> str:
    return one_line(format_value(value), _VALUE_WIDTH) if value is not None else "none"


def _dropped(start: Start, rows: StartRows, keys: KeyTable, room: int) -> Content:
    if rows.refusal:
        return Content.styled("✗ no row can be read", "$limit")
    if not rows.is_exact:
        return Content.styled(one_line(rows.progress) or "checking every row …", "$muted")
    shows = f" · {keys['start.rows'].display} shows them" if start.has_form and len(start.train) == 1 else ""
    if rows.dropped:
        for most in (4, 2, 1, 0):
            text = f"{describe_dropped(rows.dropped, most)}{shows}"
            if len(text) + 2 <= room:
                break
        return Content.styled(f"! {text}", "$near")
    if rows.look:
        verb = "is" if rows.look == 1 else "are"
        return Content(f"none · {counted(rows.look, 'row')} {verb} worth a look{shows}")
    return Content("none")


def _model(config: Config, plan: StartPlan | None) -> str:
    base = one_line(Path(config.model.base).name or config.model.base, 60)
    if plan is None or plan.parameters is None:
        return base
    count = plan.parameters
    size = f"{count / 1e9:.3g} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"
    return f"{base} · {size} parameters"


def _parent(config: Config) -> str:
    """The run that a new run trains further; empty for none."""
    return brief_id(parent_of({"model.adapter": config.model.adapter, "model.base": config.model.base}))


def _method(config: Config) -> str:
    method, train = config.method, config.train
    rank = f" rank {method.rank}" if method.name in ("qlora", "lora") else ""
    objective = "" if train.objective == "sft" else f" · {train.objective}"
    rate = exact_number(train.learning_rate)
    return f"{method.name}{rank}{objective} · learning rate {rate} · batch {train.batch_size}"


def _steps(config: Config, found: Found, room: int) -> str:
    """The number of steps and its origin, and the origin of their pace, as detailed as fits."""
    rows, train, plan = found.rows, config.train, found.plan
    steps = step_count(config, rows.ordered)
    if steps is None:
        return "…"
    about = "" if rows.is_exact or train.max_steps is not None else "~"
    passes = f"{exact_number(train.epochs)} {'pass' if train.epochs == 1 else 'passes'}"
    number = f"{about}{counted(steps, 'step')} · "
    forms = [f"{number}train.max_steps"] if train.max_steps is not None else [f"{number}{passes} over the rows"]
    estimate = plan.estimate if plan is not None else None
    if estimate is not None and estimate.early_end is not None:
        forms = [tell_early_end(estimate.early_end)]
    elif train.max_steps is None:
        forms.append(f"{number}{passes}")
    if estimate is None:
        return forms[0]
    source = {"plan": "by the plan: no run like it yet", "guess": "a guess: no run like it yet"}.get(estimate.by)
    if source is None:
        source = f"pace of {estimate.runs} runs" if estimate.runs > 1 else f"pace of {brief_id(estimate.run)}"
    energy = expected_energy(estimate.watt_hours, is_most=estimate.by == "plan")
    beside = [f" · {source}{' · ' * bool(energy)}{energy}", f" · {source}", ""]
    return _fitting([f"{form}{more}" for more in beside for form in forms], room)


def _measured(config: Config, found: Found) -> str:
    """The evaluations and their contents: ``3 times: 12 rows; before too: the general probe, 3 answers``."""
    asks, rows, plan = config.eval, found.rows, found.plan
    if not holds_out(config) and asks.prompts is None:
        return "nothing, as no rows are held out"
    # The second part is measured before training in any case.
    later, always = [], []
    if holds_out(config):
        number = min(rows.held_out, asks.max_rows)
        later.append(f"{'' if rows.is_exact else '~'}{counted(number, 'row')}" if number else "the rows held out")
        always += ["the general probe"] if asks.probe else []
    if asks.prompts is not None:
        always.append("answers to eval.prompts")
    elif asks.exact_match:
        later.append("an answer to each")
    elif asks.samples:
        always.append(counted(asks.samples, "answer"))
    estimate = plan.estimate if plan is not None else None
    number = estimate.evaluations - asks.baseline if estimate is not None else 0
    if number < 1:
        return ", ".join([*later, *always])
    times = "at the end" if number == 1 else f"{number} times"
    if asks.baseline or not later:
        return f"before and {times}: {', '.join([*later, *always])}"
    return f"{times}: {', '.join(later)}" + (f"; before too: {', '.join(always)}" if always else "")


def _time(plan: StartPlan | None, rows: StartRows, room: int) -> Content:
    """The duration of the run and its parts, as detailed as fits."""
    waits = "counting rows" if rows.used is None and not rows.progress.startswith("✗") else "…"
    if plan is None:
        return Content.styled(waits, "$muted")
    if (estimate := plan.estimate) is None:
        is_known = plan.problem or rows.is_exact
        return Content.styled("not known before the first steps" if is_known else waits, "$muted")
    whole, parts = _about(estimate.seconds), estimate.parts
    if len(parts) < 2:
        return Content(whole)
    forms = [" + ".join(f"{name} {_about(seconds)}" for name, seconds in parts)]
    brief = [(name.partition(" and ")[0].rpartition(" ")[2], seconds) for name, seconds in parts]
    forms.append(" + ".join(f"{name} {_about(seconds)}" for name, seconds in brief))
    return Content(_fitting([*(f"{whole} = {form}" for form in forms), whole], room))


def _about(seconds: float) -> str:
    return f"~{rounded_duration(seconds)}"


def _night(config: Config, plan: StartPlan | None, now: float) -> Content:
    """When the run begins and ends, by its quiet hours, and its other limits."""
    try:
        limits = Limits.of(config)
    except UserError as error:  # the rules between options report it too
        return Content.styled(one_line(error.message), "$near")
    seconds = plan.seconds if plan is not None else None
    begin, end = working_span(limits, now, seconds or 0.0)
    told = []
    if config.night.quiet_hours is not None:
        rests = begin > now or (end is not None and seconds is not None and end - begin > seconds + 1)
        power = f" with {exact_number(limits.quiet_power_w)} W" if limits.quiet_power_w is not None else ""
        waits = f": waits until {day_time(begin)}" if begin > now else ": pauses in them" if rests else ""
        told.append(f"quiet {one_line(config.night.quiet_hours, 20)}{power}{waits}")
    wishes = {
        option.name: value
        for option in options()
        if option.name.endswith(_LIMITS) and (value := getattr(getattr(config, option.section), option.key)) is not None
    }
    if seconds is not None and end is not None and (told or wishes or end - now >= _SHORT_SECONDS):
        told.append(f"ends about {day_time(end)}")
    told += [change_words(wishes)] if wishes else []
    return Content(" · ".join(told or ["no quiet hours, no limits"]))


def _memory(plan: StartPlan | None) -> Content:
    if plan is None:
        return Content.styled("…", "$muted")
    if plan.problem:
        return Content.styled(one_line(plan.problem), "$near")
    free = f" of {format_bytes(plan.free)} free" if plan.free is not None else ""
    word, style = fit_words(plan.fits, is_rough=plan.is_rough)
    about = about_words(is_rough=plan.is_rough, is_guess=plan.is_guess)
    return Content.assemble(f"{about}{format_bytes(plan.needed)}{free}", (f"  {word}" if word else "", style))


def _from(goes_on: Continuation) -> str:
    total = f" of {format_count(goes_on.total)}" if goes_on.total else ""
    saved = f", saved {format_moment(goes_on.saved, '%Y-%m-%d %H:%M')}" if goes_on.saved is not None else ""
    return f"step {format_count(goes_on.step)}{total}{saved}"


def _left(goes_on: Continuation) -> str:
    if goes_on.left is None:
        return "not known"
    again = goes_on.done - goes_on.step
    repeated = f" · {format_count(again)} of them done before and not saved" if again > 0 else ""
    return f"{counted(goes_on.left, 'step')}{repeated}"


def _rest(goes_on: Continuation, plan: StartPlan | None) -> Content:
    if plan is None:
        return Content.styled("…", "$muted")
    if plan.seconds_left is None or goes_on.left is None:
        return Content.styled("not known before the next steps", "$muted")
    return Content.assemble(_about(plan.seconds_left), (" · at its pace, evaluations included", "$muted"))


def hint_keys(start: Start, rows: StartRows) -> Sequence[str]:
    """Ids of the keys that apply to a card, the most important first."""
    found = [] if rows.refusal else ["start.start"]
    if start.has_form:
        found += ["start.presets", "start.options"]
        if len(start.train) == 1 and (rows.dropped or rows.look or rows.refusal):
            found.append("start.rows")
        if start.former:
            found.append("start.former")
    return [*found, "start.back"]


#: The answers of a card; None where the user goes back.
Answer = Literal["start", "rows", "options", "former"]
#: Columns of the card and of its frame.
_WIDTH, _FRAME = 92, 6
#: Seconds between two polls of an analysis by another part of the app.
LOOK_SECONDS = 0.25

#: Finds the rows of a run elsewhere in the app; None if the card must analyze them itself.
Look = Callable[[Start], SeenRows | None]


class StartCard(Overlay[Answer]):
    """Summary of a run before it starts; unknown facts are filled in later without moving a line.

    Args:
        start: The run.
        look: Finds its rows elsewhere in the app.
        choose_preset: Opens the presets, which change the configuration below the card.
    """

    DEFAULT_CSS = style_of("StartCard")
    SCOPE = "start"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("start")]

    def __init__(self, start: Start, look: Look, choose_preset: Callable[[], None]) -> None:
        super().__init__()
        self.start = start
        self.found = Found()
        self._look, self._choose_preset = look, choose_preset
        self._waits_to_start = False
        self._is_text = False
        self._typed = AnswerKeys()
        self._box, self._block = Vertical(), TextBlock()
        self._job: AnalysisJob | None = None
        self._seen: SeenRows | None = None
        self._hints: list[str] = []

    def compose(self) -> ComposeResult:
        """A single block of lines, with the facts known so far."""
        self._block.show(self._content(min(_WIDTH, round(0.98 * self.app.size.width)) - _FRAME))
        with self._box:
            yield self._block

    def on_mount(self) -> None:
        """Start to find out the missing facts."""
        self.set_interval(LOOK_SECONDS, self._look_again)
        self._find()
        self.call_after_refresh(self._typed.painted)

    def on_unmount(self) -> None:
        """End the analysis."""
        self._end_job()

    def on_resize(self) -> None:
        """Cut the lines to the new width."""
        self.call_after_refresh(self._show)

    def on_key(self, event: events.Key) -> None:
        """Accept enter right after the key that opened the card, but not at the end of a typed word."""
        opener = [key.strip() for key in shell_of(self).keys["app.start"].keys.split(",")]
        if self._typed.is_read:
            counts = (event.is_printable and event.key not in opener) or event.key == "enter"
            if counts and not self._typed.is_answer(event.key in self.active_bindings, event.time):
                event.stop()
                event.prevent_default()
            return
        if event.is_printable and event.key not in opener:
            self._is_text = True
        if self._is_text and event.key != "escape":
            event.stop()
            event.prevent_default()

    def show(self, start: Start) -> None:
        """Show the run again after a change of its configuration."""
        changed = start.config != self.start.config
        self.start = start
        if changed and self.is_mounted:
            self._find()
        self._show()
        if self._waits_to_start and not start.is_choosing and not self.found.rows.refusal:
            self.dismiss("start")

    # Facts.

    def _find(self) -> None:
        """Look up all facts again; the old ones stay on the screen until then."""
        self._end_job()
        goes_on = self.start.continuation is not None
        self._seen = seen = None if goes_on else self._look(self.start)
        self.found = replace(self.found, rows=self._known_rows(seen), plan=None)
        if seen is None and not goes_on:
            self._analyze()
        self._check_base()
        self._work_out(seen.analysis if seen is not None else None)
        self._show()

    def _known_rows(self, seen: SeenRows | None) -> StartRows:
        if seen is None:
            return StartRows()
        if seen.refusal:
            return StartRows(refusal=seen.refusal)
        if seen.analysis is not None:
            return StartRows.analyzed(seen.analysis)
        return StartRows.counted(seen.count, self.start.config, seen.progress)

    def _look_again(self) -> None:
        """Poll the app for the rows, until its analysis is over."""
        before = self._seen
        if before is None or before.is_over or (seen := self._look(self.start)) is None or seen == before:
            return
        self._seen = seen
        self.found = replace(self.found, rows=self._known_rows(seen))
        if seen.analysis is not None or seen.count != before.count:
            self._work_out(seen.analysis)
        self._show()

    @work(exclusive=True, group="start-rows")
    async def _analyze(self) -> None:
        """Analyze the rows in a job of the card."""
        start = self.start
        self._job = job = await asyncio.to_thread(analysis_job, start.config)

        def report(progress: JobProgress) -> None:
            self.call_later(self._progressed, job, progress)

        try:
            analysis = await asyncio.to_thread(job.run, report)
            rows = StartRows.analyzed(analysis)
        except JobCancelledError:
            return
        except JobDiedError as error:
            # A crash of the job says nothing about the rows.
            rows = StartRows(progress=f"✗ {error}")
        except UserError as error:
            rows = StartRows(refusal=str(error))
        if job is self._job:
            self._know(rows=rows)
            if rows.is_exact:
                if start.has_form and len(start.train) == 1:
                    shell_of(self).configuration.analyzed(Path(start.train[0]), analysis)
                self._work_out(analysis)

    def _progressed(self, job: AnalysisJob, progress: JobProgress) -> None:
        if job is self._job and not self.found.rows.is_exact:
            share = f" {progress.share:.0%}" if progress.share is not None else ""
            known = self.found.rows
            if progress.activity == "reading" and progress.total:
                known = StartRows.counted(progress.total, self.start.config)
            self._know(rows=replace(known, progress=f"{progress.activity}{share} …"))

    def _end_job(self) -> None:
        if self._job is not None:
            self._job.close()
            self._job = None

    @work(exclusive=True, group="start-base")
    async def _check_base(self) -> None:
        """Check the files of the base model."""
        config = self.start.config
        flaw = await asyncio.to_thread(find_flaw, config)
        if config == self.start.config:
            self._know(flaw=flaw)

    @work(exclusive=True, group="start-plan")
    async def _work_out(self, analysis: Analysis | None) -> None:
        """Work out memory, time and warnings."""
        config, rows = self.start.config, self.found.rows.ordered
        worker = get_current_worker()
        # First a rough bound, because measuring the model takes seconds.
        for measures in (False, True):
            with telling(is_wanted=lambda: not worker.is_cancelled):
                plan = await asyncio.to_thread(plan_of, self.start, analysis, rows, measures)
            if config == self.start.config:
                self._know(plan=plan)
            if not plan.is_rough:
                break
        # Warnings come last: they matter less than memory and time, and may wait for the driver.
        with suppress(UserError):
            warnings = await asyncio.to_thread(find_warnings, config, rows)
            if config == self.start.config:
                self._know(warnings=warnings)

    # Display.

    def _know(self, **facts: Any) -> None:
        """Show facts that have been found out."""
        self.found = replace(self.found, **facts)
        self._show()

    def _show(self) -> None:
        # The answer may arrive after the card has been left.
        if not self.is_mounted or self._is_left:
            return
        box = self._box
        if (width := box.content_size.width) > 0:
            self._block.show(self._content(width))
        if box.border_title != self.start.title:
            box.border_title = Content(one_line(self.start.title, 60))
        if (hints := list(hint_keys(self.start, self.found.rows))) != self._hints:
            self._hints = hints
            box.border_subtitle = self._hint_line(hints)

    def _hint_line(self, hints: Sequence[str]) -> Content:
        """The keys; the one that starts the run is the brightest thing on the screen."""
        keys = shell_of(self).keys
        if hints[0] != "start.start":
            return Content(keys.hints(hints))
        return Content.assemble((f" {keys.hints(hints[:1])} ", "$primary bold reverse"), f"  {keys.hints(hints[1:])}")

    def _content(self, width: int) -> Content:
        shell = shell_of(self)
        lines = card_lines(self.start, self.found, shell.keys, width, shell.clock())
        if self._waits_to_start and not self.found.rows.refusal:
            back = shell.keys["start.back"].display
            lines[-1] = Content.styled(f"◌ starts as soon as the preset is chosen; {back} takes it back", "$near")
        return Content("\n").join(lines)

    # Actions.

    def action_begin(self) -> None:
        """Start the run once its configuration is complete. Without usable rows nothing starts; the card shows why."""
        if self.found.rows.refusal:
            return
        if self.start.is_choosing:
            self._waits_to_start = True
            self._show()
        else:
            self.dismiss("start")

    def action_back(self) -> None:
        """Cancel a pending start, or leave the card."""
        if self._waits_to_start:
            self._waits_to_start = False
            self._show()
        else:
            self.dismiss(None)

    def action_presets(self) -> None:
        """Choose another preset."""
        if self.start.has_form:
            self._choose_preset()

    def action_go(self, where: Answer) -> None:
        """Leave the card for the rows, the options, or the former configuration."""
        if f"start.{where}" in self._hints:
            self.dismiss(where)
