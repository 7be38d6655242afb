"""Text of a memory plan in aligned lines: verdict, parts as a table and a stacked bar, time, advice and notes."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.memory.plan import Plan
    from core.memory.strategy import Chosen
    from core.runs.outlook.estimate import Estimate
    from core.runs.outlook.forecast import Forecast

#: Most characters of the stacked bar.
BAR_WIDTH = 60
#: The fewest columns that the bar and a text beside its name are fitted into.
NARROWEST = 20
#: The letter of each part in the bar.
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def render(found: Forecast, columns: int | None = None, torchrun: str = "") -> list[str]:
    """Aligned lines, safe for a terminal.

    Args:
        found: The plan with its estimate and advice.
        columns: Columns that they may take; None: each line stays whole.
        torchrun: The command line that starts the processes elsewhere; empty for a run of one process.
    """
    named = [*_named(_about(found))]
    after = [*_named(itertools.chain(_besides(found), _elsewhere(torchrun)))]
    width = BAR_WIDTH if columns is None else min(BAR_WIDTH, max(columns, NARROWEST) - 3)
    lines = [("", verdict(found)), ("", ""), *named, ("", ""), *_parts(found.plan), ("", "")]
    lines += [*(("", line) for line in bar(found.plan, width)), ("", ""), *after]
    return [line for lead, text in lines for line in _fitted(lead, text, columns)]


def _fitted(lead: str, text: str, columns: int | None) -> list[str]:
    """A line with its text wrapped beside its lead."""
    if columns is None or len(lead) + len(text) <= columns:
        return [f"{lead}{text}"]
    if columns - len(lead) < NARROWEST:  # below it, where there is no room beside it
        return [lead.rstrip(), *(f"    {line}" for line in textwrap.wrap(text, max(columns - 4, NARROWEST)))]
    first, *rest = textwrap.wrap(text, columns - len(lead), break_on_hyphens=False)
    return [f"{lead}{first}", *(" " * len(lead) + line for line in rest)]


def _named(lines: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Lines with their names in a column; a repeated name is left out."""
    before = ""
    for name, text in lines:
        yield f"{name if name != before else '':<12} ", text
        before = name


def _about(found: Forecast) -> Iterator[tuple[str, str]]:
    """The planned run: model, adapters, device, micro-batch and cards."""
    from core.text import one_line
    from core.units import format_bytes

    plan, batch = found.plan, found.plan.micro_batch
    yield "model", one_line(str(found.base), 200)
    counts = f"{_count(plan.parameters)} parameters, {_count(plan.trainable)} trained"
    yield "model", f"{found.architecture.family}, {counts}"
    if plan.targets:
        names = ", ".join(f"{one_line(name, 60)} {count}" for name, count in plan.targets)
        yield "adapters", f"on {sum(count for _, count in plan.targets)} layers: {names}"
    device = "a GPU that is not here" if found.elsewhere else "GPU" if plan.device == "cuda" else "CPU"
    yield "device", f"{device}, {format_bytes(plan.limit_bytes)} free"
    learned = f"{batch.supervised} learned{_recomputed(plan)}"
    yield "micro-batch", f"{batch.rows} x {batch.length} tokens at most, {learned}"
    if found.chosen is not None:
        yield from _shared(found.chosen)


def _recomputed(plan: Plan) -> str:
    """The recomputed activations and the offloaded parts."""
    which = "activations"
    if plan.kept_layers:
        which += f" of {plan.layers - plan.kept_layers} of {plan.layers} layers"
    moved = " and offloaded" if plan.offload else ""
    recomputed = f", {which} recomputed{moved}" if plan.checkpointing else ""
    return recomputed + (", experts in the machine's memory" if plan.experts_host_bytes else "")


def _parts(plan: Plan) -> Iterator[tuple[str, str]]:
    """The parts and their sum."""
    from core.units import format_bytes

    width = max(len(part.name) for part in plan.parts)
    for letter, part in zip(LETTERS, plan.parts, strict=False):
        yield f"{letter} {part.name.replace('_', ' '):<{width}} {format_bytes(part.bytes):>8}  ", part.what
    given_back = f"{format_bytes(plan.reclaimable_bytes)} of it can be given back" if plan.reclaimable_bytes else ""
    yield f"  {'total':<{width}} {format_bytes(plan.total_bytes):>8}  ".rstrip() + "  " * bool(given_back), given_back


def _besides(found: Forecast) -> Iterator[tuple[str, str]]:
    """The lines beside a plan: disk, time, advice and notes."""
    from core.text import one_line

    yield "disk", _disk(found.plan)
    if found.estimate is not None:
        yield "time", _time(found.estimate)
    yield from (("advice", advice.text) for advice in found.advice)
    notes = [*([found.plan.reason] if found.plan.reason else []), *found.notes]
    yield from (("note", one_line(sentence)) for sentence in notes)


def _elsewhere(torchrun: str) -> Iterator[tuple[str, str]]:
    """The ways to start the processes on other machines."""
    if torchrun:
        yield "torchrun", torchrun
        yield ("torchrun", "RUN is the directory that 'train CONFIG --no-start' prints, on a shared disk;")
        yield "torchrun", "each machine has its own --node-rank, and the first one's --master-addr"
        yield "slurm", "'train CONFIG --slurm FILE --nodes N' writes a batch file"


def bar(plan: Plan, width: int = BAR_WIDTH) -> list[str]:
    """The parts as a stacked bar against the free memory, and the measure of it in words.

    A cell has the letter of the part that fills most of it, so a small part may not show. Dots are free memory; bytes
    that do not fit are behind ``|``.
    """
    from core.units import format_bytes

    limit = None if plan.limit_bytes is None else plan.limit_bytes + plan.reclaimable_bytes
    each = max(plan.total_bytes, limit or 0, 1) / width
    cells = _cells([part.bytes for part in plan.parts], each)
    measure = f"each letter is {format_bytes(round(each))}: the part that fills most of it"
    if limit is None:
        return [f"[{cells}]", measure]
    end = round(limit / each)
    drawn = f"[{cells:.<{end}}]" if plan.fits is not False else f"[{cells[:end]}|{cells[end:]}]"
    return [drawn, f"{measure}; {'dots are free' if plan.fits is not False else 'behind | is too much'}"]


def _cells(sizes: Sequence[int], each: float) -> str:
    """A letter for each cell that is filled by half at least, of the part that has most of it."""
    edges = [0, *itertools.accumulate(sizes)]
    parts = list(zip(LETTERS, edges, edges[1:], strict=False))

    def fills(begin: float) -> str:
        shares = {letter: min(end, begin + each) - max(start, begin) for letter, start, end in parts}
        return max(shares, key=lambda letter: shares[letter])

    return "".join(fills(place * each) for place in range(round(edges[-1] / each)))


def verdict(found: Forecast) -> str:
    """The verdict in a sentence: the run fits, or it does not."""
    from core.units import format_bytes

    plan, chosen = found.plan, found.chosen
    takes = f"it takes {format_bytes(plan.needed_bytes)} {found.each}".rstrip()
    if plan.limit_bytes is None:
        return f"How much memory is free is not known: {takes}."
    left, free = format_bytes(abs(plan.limit_bytes - plan.needed_bytes)), format_bytes(plan.limit_bytes)
    given_back = ", what can be given back left out" if plan.reclaimable_bytes else ""
    if not plan.fits:
        return f"The run does not fit in {free}: {takes}, {left} too much{given_back}."
    if chosen is not None and not chosen.fits:
        host = f"{format_bytes(chosen.host_bytes)} of {format_bytes(chosen.host_free_bytes)}"
        return f"The run does not fit: {takes}, and of the machine's memory {host}."
    return f"The run fits in {free}: {takes}, {left} to spare{given_back}."


def _shared(chosen: Chosen) -> Iterator[tuple[str, str]]:
    """How several cards share the run."""
    from core.units import format_bytes

    cards = chosen.sharing.cards
    where = "" if cards.machines == 1 else f", {cards.here} on each of {cards.machines} machines"
    rows = f"at most {chosen.rows} rows of a step on each" if chosen.rows > 1 else "a row of a step on each"
    yield "cards" if chosen.unit == "card" else "processes", f"{cards.number}{where}; {rows}"
    yield "strategy", chosen.reason
    yield "network", f"{format_bytes(chosen.plan.wire_bytes)} sent by each {chosen.unit} in a step"
    if chosen.host_bytes:
        free = chosen.host_free_bytes
        of = f", {format_bytes(free)} are free" if free is not None else ""
        yield "host", f"{format_bytes(chosen.host_bytes)} of each machine's memory{of}"


def _disk(plan: Plan) -> str:
    from core.units import format_bytes

    size, one = format_bytes(plan.disk_bytes), format_bytes(plan.checkpoint_bytes)
    free = f" of {format_bytes(plan.disk_free_bytes)} free" if plan.disk_free_bytes is not None else ""
    verdict = ", which is not enough" if plan.disk_fits is False else ""
    return f"{size}{free}{verdict}; one checkpoint is {one}"


def _time(guess: Estimate) -> str:
    from core.runs.outlook.estimate import estimate_words
    from core.units import format_duration

    duration, energy, end, basis = estimate_words(guess)
    parts = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in guess.parts)
    steps = "" if end else f" for {guess.steps} steps"
    about = f"{duration} ({parts})" if len(guess.parts) > 1 else f"{duration}{steps}"
    return ", ".join(filter(None, (about, energy, basis))) + (f"; {end}" if end else "")


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)
