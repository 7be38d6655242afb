"""Start card: the facts of a run before it starts, their lines, and the dialog; only enter starts the run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from textual import events, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.worker import get_current_worker

from core.analysis.division import HELD_OUT, held_out_count
from core.analysis.job import AnalysisJob
from core.analysis.result import Analysis
from core.config.derived import step_count
from core.config.schema import Config, options
from core.errors import UserError
from core.hub_uri import is_hub_entry
from core.jobs.job import JobCancelledError, JobDiedError, JobProgress
from core.models.architecture.measuring import telling
from core.presets.provenance import Provenance, ValueGroup
from core.runs.outlook.energy import expected_energy
from core.runs.record.sentences import brief_id
from core.runs.record.store import Run, complete_checkpoints
from core.text import one_line
from core.units import exact_number, format_bytes, format_count, format_duration, format_moment
from tui.datasets.marks import OF_THE_WHOLE
from tui.datasets.summary import counted, describe_dropped
from tui.keys import KeyTable, bindings
from tui.screens.overlay import Overlay
from tui.shell import shell_of
from tui.widgets.charts.plan_bar import fit_words
from tui.widgets.forms.ask_bar import AnswerKeys
from tui.widgets.forms.option_field import format_value
from tui.widgets.strips import fit, style_of
from tui.widgets.text_block import TextBlock, clip

if TYPE_CHECKING:
    from core.analysis.job import AnalysisJob
    from core.config.facts import Unkept
    from core.memory.planner import Source
    from core.runs.outlook.estimate import PaceBook


#: Columns of the labels.
LABEL_WIDTH = 10
#: Lines kept free for warnings, so that none of the others moves when one is found.
WARNING_LINES = 3
#: Columns of the longest names of files, tried in order until the line has room.
_NAME_WIDTHS = (40, 30, 20)
#: Columns of the longest value shown beside the name of its option, and the most options that are listed.
_VALUE_WIDTH, _MOST_LISTED = 24, 12


@dataclass(frozen=True)
class StartRows:
    """Rows of a run, as far as they are known.

    Args:
        used: Rows trained on.
        held_out: Rows measured on.
        dropped: Rows that are not used, by reason.
        look: Used rows that are worth a look.
        doubts: Problems of the data as a whole, as sentences.
        is_exact: True once all rows have been analyzed.
        progress: The progress of the analysis, or the reason why it failed.
        refusal: The reason why a run cannot read the rows either; empty for none.
    """

    used: int | None = None
    held_out: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    look: int = 0
    doubts: tuple[str, ...] = ()
    is_exact: bool = False
    progress: str = ""
    refusal: str = ""

    @classmethod
    def counted(cls, count: int | None, config: Config, progress: str = "") -> StartRows:
        """Rows known by their number alone."""
        if count is None:
            return cls(progress=progress)
        kept_out = held_out_count(count, config.data.eval_share)
        return cls(count - kept_out, kept_out, progress=progress)

    @classmethod
    def analyzed(cls, analysis: Analysis) -> StartRows:
        """Rows as found by a complete analysis."""
        dropped = {reason: count for reason, count in analysis.dropped.items() if reason != HELD_OUT}
        return cls(
            analysis.used,
            analysis.dropped.get(HELD_OUT, 0) + analysis.eval_rows,
            dropped,
            sum(
                problem.count
                for problem in analysis.problems
                if problem.kind.level == "warn" and problem.code not in OF_THE_WHOLE
            ),
            tuple(problem.kind.title for problem in analysis.problems if problem.code in OF_THE_WHOLE),
            is_exact=True,
        )


@dataclass(frozen=True)
class SeenRows:
    """Rows of a run as known to another part of the app.

    Args:
        count: The number of rows; None while they are counted.
        analysis: The complete analysis; None while it is running, or if it failed.
        progress: Its progress, or the reason why it failed.
        is_over: True if the analysis has ended.
        refusal: The reason why a run cannot read the rows either; empty for none.
    """

    count: int | None
    analysis: Analysis | None
    progress: str = ""
    is_over: bool = False
    refusal: str = ""


@dataclass(frozen=True)
class StartPlan:
    """Expected memory and time of a run.

    Args:
        parameters: Parameters of the base model; None if unknown.
        needed: Bytes of memory.
        free: Free bytes; None if unknown.
        fits: True if the memory suffices; None if unknown.
        advice: The best change that would make it fit; empty if it fits.
        steps: Optimizer steps; None if unknown.
        seconds: Duration of the steps; None if unknown.
        watt_hours: Energy of the steps; None if no earlier run measured it and the device reports no power
            limit.
        pace_of: The earlier run whose pace is used; empty for a guess.
        is_planned: The estimate is by the memory plan; its energy is then an upper bound.
        early_end: Words on the limit that ends the run before its last step; empty for none.
        problem: The reason why nothing is known.
        seconds_per_step: The pace of a continued run; None if unknown.
        unmet: The deadline or energy limit that cannot be met.
        is_rough: The memory is a rough bound, because the model has not been measured yet.
    """

    parameters: int | None = None
    needed: int = 0
    free: int | None = None
    fits: bool | None = None
    advice: str = ""
    steps: int | None = None
    seconds: float | None = None
    watt_hours: float | None = None
    pace_of: str = ""
    problem: str = ""
    seconds_per_step: float | None = None
    is_planned: bool = False
    unmet: tuple[Unkept, ...] = ()
    early_end: str = ""
    is_rough: bool = False


@dataclass(frozen=True)
class Continuation:
    """Rest of a continued run.

    Args:
        run: The run.
        state: Its state, ``stopped`` or another end.
        step: The step of the checkpoint to continue from.
        saved: Time of that checkpoint, in Unix seconds; None if unknown.
        total: Steps of the whole run; 0 if unknown.
        done: The last finished step; steps after the checkpoint are repeated.
    """

    run: Run
    state: str
    step: int
    saved: float | None
    total: int
    done: int

    @property
    def left(self) -> int | None:
        """Number of steps left; None if unknown."""
        return max(self.total - self.step, 0) if self.total else None


@dataclass(frozen=True)
class Start:
    """A run about to start.

    Args:
        config: The checked configuration.
        name: Its subject, the end of the run's id.
        values: The sources of its values; None for no such line.
        is_choosing: A preset is being chosen for it, and a start waits for that.
        former: The name of the previous configuration, which a key brings back; empty for none.
        notes: Remarks that do not depend on the facts found in the background.
        continuation: The continued run; None for a new run.
        has_form: The configuration is open in the Config pane and can be changed there.
        title: The title of the card.
    """

    config: Config
    name: str
    values: Provenance | None = None
    is_choosing: bool = False
    former: str = ""
    notes: tuple[str, ...] = ()
    continuation: Continuation | None = None
    has_form: bool = False
    title: str = "Start a run"

    @property
    def train(self) -> list[str]:
        """The entries of ``data.train``."""
        train = self.config.data.train
        return [train] if isinstance(train, str) else list(train)


@dataclass(frozen=True)
class Found:
    """Facts found so far.

    Args:
        rows: The rows.
        plan: Memory and time; None while they are being estimated.
        warnings: Warnings of the rules between options.
        flaw: The reason why the files of the base model would be refused; empty for none.
    """

    rows: StartRows = field(default_factory=StartRows)
    plan: StartPlan | None = None
    warnings: tuple[str, ...] = ()
    flaw: str = ""


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
        lines.append(("held out", Content(_held_out(start, found.rows, room))))
        lines.append(("dropped", _dropped(start, found.rows, keys, room)))
    lines.append(("model", Content(_model(start.config, plan))))
    lines.append(("method", Content(_method(start.config))))
    if start.values is not None:
        lines.append(("values", Content(_values(start, start.values, keys, room))))
    if goes_on is not None:
        lines += [("from", Content(_from(goes_on))), ("left", Content(_left(goes_on)))]
        lines.append(("time", _rest(goes_on, plan, now)))
    else:
        lines.append(("steps", Content(_steps(start.config, found))))
        lines.append(("time", _time(plan, found.rows)))
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
    """The training files, and the number of training rows."""
    if start.continuation is not None or (rows.used is None and rows.refusal):
        count = ""
    elif rows.used is None:
        count = " · …"
    else:
        count = f" · {'' if rows.is_exact else '~'}{counted(rows.used, 'row')}"
    return _fitting([f"{_names(start.train, width)}{count}" for width in _NAME_WIDTHS], room)


def _held_out(start: Start, rows: StartRows, room: int) -> str:
    """The number of held-out rows, and their source."""
    data, about = start.config.data, "" if rows.is_exact else "~"
    if data.eval is not None:
        # Their number is known once they have been read.
        count = counted(rows.held_out, "row") if rows.is_exact else "rows"
        entries = [data.eval] if isinstance(data.eval, str) else data.eval
        return _fitting([f"{count} of {_names(entries, width)}" for width in _NAME_WIDTHS], room)
    if not data.eval_share or (rows.used is not None and not rows.held_out):
        return "none, so nothing is measured"
    if rows.used is None:
        return "…"
    first = start.train[0]
    is_file = not is_hub_entry(first) and "#" not in first and Path(first).suffix
    noun = "files" if len(start.train) > 1 else "file" if is_file else "data"
    return f"{about}{counted(rows.held_out, 'row')} of the same {noun}"


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
        return Content.styled(one_line(rows.progress) or "looking at every row …", "$muted")
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


def _method(config: Config) -> str:
    method, train = config.method, config.train
    rank = f" rank {method.rank}" if method.name in ("qlora", "lora") else ""
    objective = "" if train.objective == "sft" else f" · {train.objective}"
    rate = exact_number(train.learning_rate)
    return f"{method.name}{rank}{objective} · learning rate {rate} · batch {train.batch_size}"


def _steps(config: Config, found: Found) -> str:
    rows, train = found.rows, config.train
    steps = step_count(config, rows.used)
    if steps is None:
        return "…"
    if found.plan is not None and found.plan.early_end:
        return found.plan.early_end
    about = "" if rows.is_exact or train.max_steps is not None else "~"
    passes = f"{exact_number(train.epochs)} {'pass' if train.epochs == 1 else 'passes'} over the rows"
    return f"{about}{counted(steps, 'step')} · {'train.max_steps' if train.max_steps is not None else passes}"


def _time(plan: StartPlan | None, rows: StartRows) -> Content:
    if plan is None:
        return Content.styled("…", "$muted")
    if plan.seconds is None:
        waits = not plan.problem and not rows.is_exact
        return Content.styled("…" if waits else "not known before the first steps", "$muted")
    energy = expected_energy(plan.watt_hours, is_most=plan.is_planned)
    source = f"at the pace of {one_line(plan.pace_of, 60)}" if plan.pace_of else "a guess: no run like it here yet"
    source = "by the plan: no run like it here yet" if plan.is_planned else source
    return Content.assemble(
        f"~{format_duration(_rounded(plan.seconds))}{' · ' * bool(energy)}{energy}", (f" · {source}", "$muted")
    )


def _rounded(seconds: float) -> float:
    """An estimate rounded to its precision."""
    unit = 10 if seconds >= 60 else 1
    return max(round(seconds / unit) * unit, 1)


def _memory(plan: StartPlan | None) -> Content:
    if plan is None:
        return Content.styled("…", "$muted")
    if plan.problem:
        return Content.styled(one_line(plan.problem), "$near")
    free = f" of {format_bytes(plan.free)} free" if plan.free is not None else ""
    word, style = fit_words(plan.fits, is_rough=plan.is_rough)
    about = "roughly " if plan.is_rough else ""
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


def _rest(goes_on: Continuation, plan: StartPlan | None, now: float) -> Content:
    if plan is None:
        return Content.styled("…", "$muted")
    if plan.seconds_per_step is None or goes_on.left is None:
        return Content.styled("not known before the next steps", "$muted")
    seconds = plan.seconds_per_step * goes_on.left
    pattern = "%H:%M" if seconds < 20 * 3600 else "%Y-%m-%d %H:%M"
    until = format_moment(now + seconds, pattern)
    return Content.assemble(
        f"~{format_duration(_rounded(seconds))} · until about {until}", (" · at its pace", "$muted")
    )


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


def find_plan(
    config: Config, analysis: Analysis | None, used: int | None, paces: PaceBook, source: Source = "measured"
) -> StartPlan:
    """Plan memory and time; asks the driver and reads headers, so call it from a thread.

    Args:
        config: The checked configuration.
        analysis: The complete analysis of the rows, if there is one.
        used: The number of training rows; None if unknown.
        paces: Earlier runs.
        source: As for :func:`core.memory.planner.make_plan`.
    """
    from core.models.find import STARTER_NAME, find_model
    from core.runs.outlook.estimate import cut, tell_early_end
    from core.runs.outlook.forecast import forecast_here, rough_seconds, unmet

    if find_model(config.model.base) is None:
        first = "not known: the model is made ready first" if config.model.base == STARTER_NAME else ""
        return StartPlan(problem=first or "not known: the model is not on this machine")
    try:
        found = forecast_here(config, analysis.lengths if analysis is not None else None, used, paces, source)
    except UserError as error:
        return StartPlan(problem=error.message)
    plan, guess, rows, steps = found.plan, found.estimate, found.rows, step_count(config, used)
    if guess is not None and guess.by == "plan" and rows is None:
        guess = None  # it would be many times too long until the rows are measured
    seconds, end = (guess.seconds, guess.early_end) if guess is not None else (None, None)
    if seconds is None and steps is not None and rows is not None and rows.tokens:
        rough = rough_seconds(config, plan, steps, rows.tokens / max(rows.count, 1))
        seconds, _, end = cut(config, steps, rough, None)
    advice = ""
    if found.fits is False and not found.is_rough:
        first_advice = f" {found.advice[0].text}" if found.advice else ""
        advice = f"The memory does not suffice.{first_advice}"
    elif plan.disk_fits is False:
        advice = "The disk has not enough room for the checkpoints."
    return StartPlan(
        parameters=plan.parameters,
        needed=plan.needed_bytes,
        free=plan.limit_bytes,
        fits=found.fits,
        advice=advice,
        steps=steps,
        seconds=seconds,
        watt_hours=guess.watt_hours if guess is not None else None,
        pace_of=guess.run if guess is not None else "",
        is_planned=guess is not None and guess.by == "plan",
        unmet=tuple(unmet(config, guess, time.time())),
        early_end=tell_early_end(end) if end is not None else "",
        is_rough=found.is_rough,
    )


def _plan(start: Start, analysis: Analysis | None, used: int | None, measures: bool) -> StartPlan:
    """The plan of a new run, or of the rest of one at its own pace; blocks."""
    from core.runs.outlook.estimate import PaceBook

    plan = find_plan(start.config, analysis, used, PaceBook(), "measured" if measures else "known")
    if start.continuation is None:
        return plan
    return replace(plan, seconds_per_step=_find_pace(start.continuation.run), unmet=())


def find_flaw(config: Config) -> str:
    """The reason why the files of the base model would be refused; empty for none, or if it is no local directory.

    Headers are read by a helper process, so call it from a thread.
    """
    from core.models.find import find_model
    from core.models.sandboxed import check_model_directory

    directory = find_model(config.model.base)
    if directory is None or not directory.is_dir():
        return ""
    try:
        check_model_directory(directory)
    except UserError as error:
        # The name is shorter than the path.
        return str(error).replace(str(directory), directory.name)
    return ""


def find_warnings(config: Config, used: int | None) -> tuple[str, ...]:
    """Warnings of the rules between options; asks for card and disk, so call it from a thread."""
    from core.commands.configuration import gather_facts
    from core.config.rules.check import check_rules

    facts = replace(gather_facts(config), rows=used)
    return tuple(remark.sentence for remark in check_rules(config, facts) if remark.level == "warning")


def analysis_job(config: Config) -> AnalysisJob:
    """Job that analyzes all rows of a configuration, with tokens if its model is on this machine."""
    from core.analysis import job
    from core.analysis.result import request_for
    from core.analysis.row_samples import tokenizer_directory
    from core.template.builtin import template_source

    model = template = None
    # Without tokenizer or template the rows are analyzed without tokens; the run reports the error.
    with suppress(UserError):
        template = template_source(config.template.file, config.template.name)
        model = str(tokenizer_directory(config.model.base))
    return job.analysis_job(request_for(config, model=model, template=template))


def find_continuation(run: Run) -> Continuation:
    """The rest of a run to continue.

    Raises:
        UserError: If it cannot be continued.
    """
    from core.launch.launcher import refuse_continuation

    state = run.state()
    refuse_continuation(run, state)
    checkpoint = complete_checkpoints(run)[-1]
    step = int(checkpoint.name.rpartition("-")[2])
    saved = None
    with suppress(OSError):
        saved = (checkpoint / "manifest.json").stat().st_mtime
    return Continuation(run, state.state, step, saved, state.total_steps, max(state.step, step))


def _find_pace(run: Run) -> float | None:
    """Recent seconds per step of a run; None if unknown. Reads its events, so call it from a thread."""
    from core.runs.catalog.rows import read_totals
    from core.runs.outlook.estimate import LONGEST_RECORD

    with suppress(OSError):
        if run.events_path.stat().st_size <= LONGEST_RECORD:
            steps = read_totals(run.events_path).steps
            return steps.seconds[-1] / steps.count if steps.seconds else None
    return None


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
        config, used = self.start.config, self.found.rows.used
        worker = get_current_worker()
        # First a rough bound, because measuring the model takes seconds.
        for measures in (False, True):
            with telling(is_wanted=lambda: not worker.is_cancelled):
                plan = await asyncio.to_thread(_plan, self.start, analysis, used, measures)
            if config == self.start.config:
                self._know(plan=plan)
            if not plan.is_rough:
                break
        # Warnings come last: they matter less than memory and time, and may wait for the driver.
        with suppress(UserError):
            warnings = await asyncio.to_thread(find_warnings, config, used)
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
        shell, box = shell_of(self), self._box
        if (width := box.content_size.width) > 0:
            self._block.show(self._content(width))
        if box.border_title != self.start.title:
            box.border_title = Content(one_line(self.start.title, 60))
        if (hints := list(hint_keys(self.start, self.found.rows))) != self._hints:
            self._hints = hints
            box.border_subtitle = Content(shell.keys.hints(hints))

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
