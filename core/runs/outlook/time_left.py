"""Time left of a live run: its steps at the recent pace, and the evaluations and checkpoints still scheduled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.runs.record.timings import PARTS, EvaluationTiming, Timings
from core.units import format_duration

if TYPE_CHECKING:
    from core.config.schema import Config

#: Checkpoints in a run without checkpoint.every_steps.
DEFAULT_CHECKPOINTS = 10
#: Added to a quotient that rounding may leave just below a whole number.
_ROUNDING = 1e-9
_MOST = 1e15
#: Rows of a batch of answers; tokens measured in the time of a decoding step, which reads all weights, and for each row
#: of the batch; factor and margin by which the longest answer of a batch, which the others wait for, is longer than the
#: mean.
BATCH_ROWS, DECODED_TOKENS, ROW_TOKENS, LONGER, MARGIN_TOKENS = 32, 56, 4, 1.25, 16
#: Tokens of the general probe, by a usual tokenizer and template.
PROBE_TOKENS = 3000


def evaluations_by(
    step: int, every_steps: int | None, every_epochs: float | None, steps_per_epoch: float | None
) -> int:
    """Number of evaluations due up to and including a step, without the baseline before the first step.

    Args:
        step: The step.
        every_steps: ``eval.every_steps``, which takes precedence.
        every_epochs: ``eval.every_epochs``.
        steps_per_epoch: Optimizer steps in one pass over the rows; None where unknown.
    """
    if every_steps is not None:
        return step // every_steps
    if every_epochs is None or not steps_per_epoch:
        return 0
    return int(min(step / (every_epochs * steps_per_epoch), _MOST) + _ROUNDING)


def checkpoints_by(step: int, every_steps: int | None, total: int) -> int:
    """Number of checkpoints due up to and including a step.

    Args:
        step: The step.
        every_steps: ``checkpoint.every_steps``.
        total: Steps of the whole run.
    """
    return step // (every_steps or max(math.ceil(total / DEFAULT_CHECKPOINTS), 1))


@dataclass(frozen=True)
class Schedule:
    """Evaluations and checkpoints of a run, by its configuration."""

    measures: bool = False
    """True if rows are held out."""
    answers: bool = False
    """True if they are answered as well (``eval.exact_match``)."""
    samples: int = 0
    """Sample answers at each evaluation besides."""
    probe: bool = False
    """True if the general probe is measured as well (``eval.probe``)."""
    baseline: bool = False
    """True if the untouched model is evaluated; without it, only the probe and the samples are measured at first."""
    prompts: bool = False
    """True if these answer prompts of their own (``eval.prompts``), whose expected length is unknown."""
    eval_steps: int | None = None
    eval_epochs: float | None = None
    checkpoint_steps: int | None = None
    batch_rows: int = 8
    """Rows of an optimizer step."""
    for_file: bool = False
    """True if the last steps train the weights of a file (``method.train_for``), which takes longer."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Schedule:
        """The schedule of a configuration.

        Args:
            values: ``section.key`` to value, unchecked, as in ``run.toml``; missing options have their defaults.
        """
        from core.config.schema import EvalSection, TrainSection

        share = positive_number(values.get("data.eval_share"))
        measures = bool(values.get("data.eval")) or bool(share)
        answers = measures and values.get("eval.exact_match") is True
        samples = positive_count(values.get("eval.samples", EvalSection().samples)) or 0
        prompts = bool(values.get("eval.prompts"))
        return cls(
            measures=measures,
            answers=answers,
            prompts=prompts,
            samples=max(samples, 1) if prompts else samples if measures and not answers else 0,
            probe=measures and values.get("eval.probe") is not False,
            baseline=values.get("eval.baseline") is True,
            eval_steps=positive_count(values.get("eval.every_steps")),
            eval_epochs=positive_number(values.get("eval.every_epochs")),
            checkpoint_steps=positive_count(values.get("checkpoint.every_steps")),
            batch_rows=positive_count(values.get("train.batch_size")) or TrainSection().batch_size,
            for_file=values.get("method.train_for") is not None,
        )

    @classmethod
    def of_config(cls, config: Config) -> Schedule:
        """The schedule of a checked configuration."""
        sections = config.model_dump()
        return cls.of({f"{name}.{key}": value for name, keys in sections.items() for key, value in keys.items()})

    def changed(self, settings: Mapping[str, Any]) -> Schedule:
        """The schedule with changes to the live run."""
        found = self
        if "eval.every_steps" in settings:
            found = replace(found, eval_steps=positive_count(settings["eval.every_steps"]), eval_epochs=None)
        if "checkpoint.every_steps" in settings:
            found = replace(found, checkpoint_steps=positive_count(settings["checkpoint.every_steps"]))
        return found

    def steps_left(self, step: int, total: int) -> float:
        """Steps to come, weighted by their duration relative to a step of now."""
        from core.config.derived import FILE_SLOWNESS, steps_before_file

        left = max(total - step, 0)
        if not self.for_file or step > (before := steps_before_file(total)):
            return float(left)
        return left + (FILE_SLOWNESS - 1) * min(left, total - before)

    def evaluation_tokens(self, rows: int, tokens: float, answer: float) -> dict[str, float]:
        """Duration of each part of an evaluation, as the number of tokens that forward passes read in that time.

        Args:
            rows: Held-out rows.
            tokens: Their tokens.
            answer: Mean tokens of an answer.
        """

        def decoded(number: int) -> float:
            steps = answer * LONGER + MARGIN_TOKENS
            return steps * (math.ceil(number / BATCH_ROWS) * DECODED_TOKENS + number * ROW_TOKENS)

        answered = decoded(rows) if self.answers else 0.0
        parts = tokens * self.measures, answered, float(PROBE_TOKENS * self.probe), decoded(self.samples)
        return dict(zip(PARTS, parts, strict=True))

    @property
    def evaluates(self) -> bool:
        """True if there are evaluations at all."""
        return self.measures or self.samples > 0

    def evaluations_by(self, step: int, steps_per_epoch: float | None) -> int:
        """Number of evaluations due up to and including a step, without the baseline before the first step."""
        if not self.evaluates:
            return 0
        return evaluations_by(step, self.eval_steps, self.eval_epochs, steps_per_epoch)

    def checkpoints_by(self, step: int, total: int) -> int:
        """Number of checkpoints due up to and including a step."""
        return checkpoints_by(step, self.checkpoint_steps, total)


def positive_count(value: object) -> int | None:
    """A count from an unchecked configuration; None if it is missing or invalid."""
    return value if type(value) is int and 0 < value < 1 << 62 else None


def positive_number(value: object) -> float | None:
    """A number from an unchecked configuration; None if it is missing or invalid."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Compared before the conversion: an integer may be larger than any float.
    return float(value) if 0 < value < _MOST else None


#: Steps, and the share of a run's steps, after which its pace is known.
KNOWN_STEPS, KNOWN_SHARE = 5, 0.1
#: Seconds assumed for a checkpoint before the first: the adapter of a small model.
CHECKPOINT_SECONDS = 0.3
#: Saving the result takes about this share of a checkpoint, which has the optimizer's states as well.
RESULT_SHARE = 0.25
#: Measuring a token takes a single pass, training on it about three.
FORWARD_SHARE = 1 / 3


@dataclass(frozen=True)
class Eta:
    """Seconds left of a run, in parts."""

    steps: float
    evaluation: float
    """Evaluations and sample answers, the last one included."""
    saving: float
    """Checkpoints and the result."""
    is_rough: bool = False
    """True if the pace is not known yet, or an evaluation to come was never measured."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.steps + self.evaluation + self.saving


def estimate(timings: Timings, schedule: Schedule, total_steps: int, now: float) -> Eta | None:
    """Estimate the time until a run ends by itself, without pauses and early stopping.

    Args:
        timings: Timings of the run so far.
        schedule: Its evaluations and checkpoints, with changes to the live run.
        total_steps: Steps of the whole run.
        now: Unix seconds; the present step, evaluation or checkpoint counts down with it.

    Returns:
        None at the end, and before the first step until an evaluation has shown the speed of the machine.
    """
    pace, step, anchor = timings.seconds_per_step or _first_pace(timings, schedule), timings.step, timings.anchor
    if pace is None or total_steps < 1 or anchor is None:
        return None
    if timings.paused_since is not None:
        now = min(now, timings.paused_since)
    elapsed = max(now - anchor, 0.0)
    left = max(total_steps - step, 0)
    each = _evaluation_seconds(timings, schedule)
    measured = timings.checkpoint_seconds
    checkpoint = CHECKPOINT_SECONDS if measured is None else measured
    current = timings.evaluation
    evaluations = _evaluations_left(timings, schedule, total_steps)
    checkpoints = _checkpoints_left(timings, schedule, total_steps)
    steps, evaluation = schedule.steps_left(step, total_steps) * pace, evaluations * each
    saving = checkpoints * checkpoint + RESULT_SHARE * checkpoint
    is_evaluation_next = current is None and _is_evaluation_due(timings, schedule, total_steps)
    # The elapsed time of the present part is taken off, down to nothing.
    if current is not None:
        evaluation += _rest_of(current, timings, schedule, now)
    elif timings.phase == "saving" or (not left and not is_evaluation_next):
        saving -= min(elapsed, saving if not evaluations else checkpoint)
    elif is_evaluation_next:
        evaluation -= min(elapsed, each)
    elif left:
        steps -= min(elapsed, pace)
    known = timings.steps_done >= KNOWN_STEPS or timings.steps_done >= KNOWN_SHARE * total_steps > 1
    is_unmeasured = evaluations > 0 and timings.evaluation_seconds is None
    return Eta(steps, evaluation, saving, not known or is_unmeasured)


#: Share of a part of an evaluation from which its progress predicts its end.
_TELLING_SHARE = 0.1


def _is_evaluation_due(timings: Timings, schedule: Schedule, total: int) -> bool:
    """True if an evaluation comes before the next step, or before the end."""
    step, epoch = timings.step, timings.steps_per_epoch
    if timings.evaluated_step == step:
        return False
    if step >= total:
        return schedule.evaluates
    return schedule.evaluations_by(step, epoch) > schedule.evaluations_by(step - 1, epoch)


def _evaluations_left(timings: Timings, schedule: Schedule, total: int) -> int:
    """Evaluations to come, without the present one."""
    if not schedule.evaluates:
        return 0
    step, epoch = timings.step, timings.steps_per_epoch
    due = timings.evaluation is None and _is_evaluation_due(timings, schedule, total)
    if step >= total:
        return int(due)
    between = schedule.evaluations_by(total - 1, epoch) - schedule.evaluations_by(step, epoch)
    return int(due) + between + 1


def _checkpoints_left(timings: Timings, schedule: Schedule, total: int) -> int:
    step = timings.step
    if step >= total:
        return int(timings.saved_step != step)
    due = schedule.checkpoints_by(step, total) > schedule.checkpoints_by(step - 1, total) and timings.saved_step != step
    between = schedule.checkpoints_by(total - 1, total) - schedule.checkpoints_by(step, total)
    return int(due) + between + 1


def _answer_tokens(timings: Timings) -> float:
    """Mean tokens of an expected answer; 0 if unknown."""
    data = timings.data
    return data.supervised_tokens / data.used if data is not None and data.used > 0 else 0.0


def part_tokens(timings: Timings, schedule: Schedule) -> dict[str, float]:
    """The parts of an evaluation of a run, as :meth:`Schedule.evaluation_tokens`."""
    if (data := timings.data) is None:
        return dict.fromkeys(PARTS, 0.0)
    return schedule.evaluation_tokens(data.held_out_rows or 0, data.held_out_tokens or 0, _answer_tokens(timings))


def _forward_seconds(timings: Timings, schedule: Schedule) -> float | None:
    """Seconds of a forward pass per token, as an evaluation has shown; None before that."""
    tokens = part_tokens(timings, schedule)
    rates = (timings.warm[part] / tokens[part] for part in ("loss", "probe") if part in timings.warm and tokens[part])
    return next(rates, None)


def _first_pace(timings: Timings, schedule: Schedule) -> float | None:
    """Seconds of a step by the speed of the first evaluation; None before that."""
    forward, data = _forward_seconds(timings, schedule), timings.data
    if forward is None or data is None or data.used < 1:
        return None
    return forward / FORWARD_SHARE * schedule.batch_rows * data.tokens / data.used


def _expected_parts(timings: Timings, schedule: Schedule) -> dict[str, float]:
    """Expected seconds of the parts of an evaluation that was not measured yet."""
    trained, current, tokens = timings.seconds_per_token, timings.evaluation, part_tokens(timings, schedule)
    forward = trained * FORWARD_SHARE if trained is not None else _forward_seconds(timings, schedule) or 0.0
    loss = current.part_seconds("loss") if current is not None else None
    if loss and tokens["loss"]:
        forward = min(forward, loss / tokens["loss"])
    return {part: forward * count for part, count in tokens.items()}


def _evaluation_seconds(timings: Timings, schedule: Schedule) -> float:
    """Seconds of one evaluation: as measured, else from its rows and the speed of the machine."""
    measured, answer = timings.evaluation_seconds, _answer_tokens(timings)
    if measured is None:
        return sum(_expected_parts(timings, schedule).values())
    if not timings.is_only_base_measured or schedule.prompts or answer <= 0:
        return measured
    # The untouched model answers up to the limit, a margin above the longest answer; a tuned model stops earlier.
    parts = timings.part_seconds
    decoding = answer * LONGER + MARGIN_TOKENS
    return measured - (parts.get("answers", 0.0) + parts.get("samples", 0.0)) * MARGIN_TOKENS / decoding


def _is_telling(current: EvaluationTiming) -> bool:
    """True if the progress of its present part predicts its end. Answers come in batches, and the first batch takes
    longest."""
    return bool(current.done and current.total) and current.done >= _TELLING_SHARE * current.total


def _rest_of(current: EvaluationTiming, timings: Timings, schedule: Schedule, now: float) -> float:
    """Seconds left of an evaluation: of its present part by its progress, else as expected, and of the later parts by
    the last evaluation, else as expected."""
    elapsed = max(now - current.began - current.paused, 0.0)
    before = {} if timings.is_only_base_measured else timings.part_seconds
    if timings.evaluation_seconds is not None and not before.get(current.part):
        return max(_evaluation_seconds(timings, schedule) - elapsed, 0.0)
    known = before or _expected_parts(timings, schedule)
    part = current.part or PARTS[0]
    whole, later = known.get(part, 0.0), PARTS[PARTS.index(part) + 1 :]
    began = current.part_began or current.began
    if not before and _is_telling(current):
        whole = max(current.at - began, 0.0) * current.total / current.done
    return max(whole - max(now - began, 0.0), 0.0) + sum(known.get(other, 0.0) for other in later)


#: An end that comes later by this factor and so many seconds is shown at once; any other is approached.
_MUCH, _MUCH_SECONDS = 1.25, 5.0


class SteadyEta:
    """Time left of a live run for a display: it counts down or stands still while the estimates go up and down a
    little, and rises only if the end comes much later."""

    def __init__(self) -> None:
        self._left, self._at = 0.0, math.inf

    def follow(self, eta: Eta | None, now: float) -> Eta | None:
        """The time left to show at a Unix time, for a new estimate; its parts are in proportion."""
        if eta is None or eta.seconds <= 0:
            self._at = math.inf
            return eta
        shown, left = eta.seconds, self._left
        if now >= self._at and left - (now - self._at) < shown <= _MUCH * left + _MUCH_SECONDS:
            shown = min(shown, left)
        self._left, self._at = shown, now
        share = shown / eta.seconds
        return replace(eta, steps=share * eta.steps, evaluation=share * eta.evaluation, saving=share * eta.saving)


def eta_words(eta: Eta | None, *, split: bool = False) -> str:
    """Time left, ``4m 10s``; ``~4m 10s`` for a guess, empty if unknown.

    Args:
        eta: The time left; None if unknown.
        split: Whether to list its parts, if there are several: ``4m 10s (steps 2m 05s, evaluations 2m 05s)``.
    """
    if eta is None:
        return ""
    words = ("~" if eta.is_rough else "") + _left(eta.seconds)
    parts = ", ".join(f"{name} {left}" for name, left in eta_parts(eta).items()) if split else ""
    return f"{words} ({parts})" if parts else words


def eta_parts(eta: Eta) -> dict[str, str]:
    """Parts of the time left, ``{"steps": "2m 05s", "evaluations": "2m 00s"}``; empty if the steps are nearly all of
    it, or there is one part.
    """
    parts = {"steps": eta.steps, "evaluations": eta.evaluation, "saving": eta.saving}
    shown = {name: _left(seconds) for name, seconds in parts.items() if seconds >= 1}
    return shown if len(shown) > 1 and eta.seconds - eta.steps >= 0.05 * eta.seconds else {}


def _left(seconds: float) -> str:
    """Time left in whole seconds, so that its width stays the same."""
    whole = math.ceil(seconds - 0.5) if seconds >= 1 else math.ceil(seconds)
    return f"{whole}s" if whole < 60 else format_duration(whole)
