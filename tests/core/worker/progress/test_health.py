"""Losses that are not finite, and loss spikes."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.analysis.problems import NAMED_LINES, FileLine, name_places
from core.worker.progress.health import (
    FEWEST,
    MOST_TOLD,
    NONFINITE_LIMIT,
    ROLLBACK_LIMIT,
    Action,
    FiniteCheck,
    LossSpikes,
    Spike,
)
from tests.cases import cases

PLACES = [FileLine("a.jsonl", 4), FileLine("b.jsonl", 2), FileLine("a.jsonl", 3)]


class Told:
    def __init__(self) -> None:
        self.notices: list[tuple[str, str, str]] = []
        self.finite = FiniteCheck(lambda *notice: self.notices.append(notice), PLACES)

    def accepts(self, loss: float, norm: float, *, overflow: bool = False) -> bool:
        return self.finite.accepts(9, loss, norm, [0, 2], overflow=overflow)


@cases(("loss", "norm"), [(math.nan, math.nan), (1.0, math.inf), (math.inf, 1.0)])
def test_an_update_that_is_not_finite_is_refused_with_its_rows(loss: float, norm: float) -> None:
    told = Told()
    assert not told.accepts(loss, norm)
    ((code, message, hint),) = told.notices
    assert code == "nonfinite"
    assert "a.jsonl lines 3 and 4" in message
    assert str(NONFINITE_LIMIT) in hint
    assert told.finite.skipped == 1


def test_only_failures_in_a_row_are_hopeless() -> None:
    told = Told()
    for _ in range(NONFINITE_LIMIT - 1):
        told.accepts(math.nan, math.nan)
    assert told.accepts(1.0, 1.0)
    for _ in range(NONFINITE_LIMIT):
        assert not told.finite.is_hopeless
        told.accepts(math.nan, math.nan)
    assert told.finite.is_hopeless
    assert told.finite.skipped == 2 * NONFINITE_LIMIT - 1
    verdict = told.finite.verdict(4)
    assert "a.jsonl lines 3 and 4; the last good checkpoint is that of step 4." in verdict.message
    assert "no checkpoint is known to be good" in told.finite.verdict(None).message
    again = Told()
    again.finite.restore(told.finite.facts())
    assert again.finite.is_hopeless


def test_an_overflow_that_a_smaller_scale_mends_is_passed_over() -> None:
    told = Told()
    assert not told.accepts(1.0, math.inf, overflow=True)
    assert not told.accepts(math.nan, math.nan, overflow=True)
    assert [code for code, _, _ in told.notices] == ["nonfinite"]


@cases(("loss", "words"), [(0.0, "Loss and gradient"), (2.5, "although its loss is 2.5")])
def test_a_gradient_of_nothing_is_noticed_once(loss: float, words: str) -> None:
    told = Told()
    assert all(told.accepts(*step) for step in ((0.0, 0.1), (loss, 0.0), (loss, 0.0)))
    ((code, message, _),) = told.notices
    assert code == "zero_gradient"
    assert words in message


def test_places_are_named_once_in_order_and_not_all_of_many() -> None:
    assert name_places([]) == "their places are not known"
    assert name_places([*PLACES, *PLACES]) == "a.jsonl lines 3 and 4; b.jsonl line 2"
    assert name_places([FileLine("\x1b[31m.jsonl", 1)]).isprintable()
    many = name_places([FileLine("a", line) for line in range(1, NAMED_LINES + 11)])
    assert many.startswith("a lines 1, 2, ")
    assert many.endswith(f", {NAMED_LINES} and 10 more")


RECORDED = sorted((Path(__file__).parents[3] / "core" / "runs" / "recorded").glob("*/events.jsonl.gz"))
FAQ_LINES = [FileLine("faq.jsonl", line) for line in range(1, 401)]
CALM = 60


class Watched:
    """Losses of a run, step by step, with the notices about them."""

    def __init__(self, action: Action = "warn", **options: float) -> None:
        self.notices: list[tuple[str, str, str]] = []
        self.spikes = LossSpikes(action, **options, notice=lambda *told: self.notices.append(told), places=FAQ_LINES)  # type: ignore[arg-type]
        self.step = 0

    def due(self) -> Spike | None:
        """A method, which mypy does not take for unchanged."""
        return self.spikes.due

    def feed(self, losses: Sequence[float], tokens: int | Sequence[int] = 80) -> list[bool]:
        counts = [tokens] * len(losses) if isinstance(tokens, int) else tokens
        accepted = []
        for loss, count in zip(losses, counts, strict=True):
            self.step += 1
            accepted.append(self.spikes.accepts(self.step, loss, count, [self.step - 1]))
        return accepted


def noise(count: int, level: float = 1.2, width: float = 0.1, seed: int = 1) -> list[float]:
    dice = random.Random(seed)
    return [dice.gauss(level, width) for _ in range(count)]


def calm(action: Action = "warn", **options: float) -> Watched:
    watched = Watched(action, **options)
    watched.feed(noise(CALM))
    assert not watched.notices
    return watched


def test_a_spike_is_reported_with_its_step_loss_expectation_and_rows() -> None:
    watched = calm()
    assert watched.feed([7.13]) == [True]
    ((code, message, hint),) = watched.notices
    assert code == "loss_spike"
    assert "7.13 at step 61, where about 1.18 was expected (5" in message
    assert "faq.jsonl line 61" in message
    assert "train.on_loss_spike" in hint
    assert watched.due() is None


@cases("path", RECORDED, ids=lambda path: path.parent.name)
def test_a_recorded_run_has_no_spike_at_any_step(path: Path) -> None:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        steps = [event for line in file if (event := json.loads(line))["type"] == "step"]
    losses, tokens = [event["loss"] for event in steps], [event["supervised_tokens"] for event in steps]
    for threshold in (5.0, 8.0):
        watched = Watched(threshold=threshold)
        watched.feed(losses, tokens)
        assert watched.notices == []
    at = len(losses) - 1
    if at > FEWEST + 2:
        watched = Watched()
        watched.feed([*losses[:at], losses[at] + 12.0], tokens)
        assert [code for code, *_ in watched.notices] == ["loss_spike"], "and one that is added is found"


@given(
    st.integers(0, 2**32),
    st.floats(0.05, 8),
    st.floats(0.001, 0.4),
    st.floats(0, 5),
    st.floats(10, 300),
    st.lists(st.integers(1, 400), min_size=1, max_size=20),
)
def test_an_ordinary_run_has_no_spike(
    seed: int, floor: float, width: float, fall: float, pace: float, tokens: list[int]
) -> None:
    """A falling loss, with noise that grows with the loss and that the mean of few tokens has more of."""
    dice = random.Random(seed)
    counts = [dice.choice(tokens) for _ in range(300)]
    middle = sorted(counts)[150]
    losses = []
    for step, count in enumerate(counts):
        level = floor + fall * math.exp(-step / pace)
        losses.append(max(0.0, level * (1 + dice.gauss(0, width) * math.sqrt(max(middle / count, 1.0)))))
    watched = Watched()
    watched.feed(losses, counts)
    assert watched.notices == []


def test_short_rows_that_come_now_and_then_are_no_spike() -> None:
    watched = Watched()
    dice = random.Random(3)
    for number in range(400):
        short = number % 16 == 7
        watched.feed([dice.gauss(3.2 if short else 1.2, 0.1)], 6 if short else 500)
    assert watched.notices == []
    watched.feed([3.2], 500)
    assert len(watched.notices) == 0, "as high as others have been"
    watched.feed([6.0], 500)
    assert len(watched.notices) == 1


def test_warm_up_and_the_first_steps_are_ignored() -> None:
    watched = Watched(warmup=50)
    watched.feed([9.0] * 30 + noise(20, level=2.0) + noise(FEWEST - 1))
    watched.feed([40.0])
    assert watched.notices == []
    watched = Watched(warmup=5)
    watched.feed([30.0, 1.0, 30.0, 1.0, 30.0, *noise(FEWEST + 1)])
    watched.feed([9.0])
    assert len(watched.notices) == 1, "and what they had is forgotten"


def test_a_level_that_stays_high_becomes_the_usual_one() -> None:
    watched = calm()
    watched.feed(noise(200, level=4.0))
    assert len(watched.notices) == 1
    watched.feed([9.0])
    assert len(watched.notices) == 2


def test_reports_of_spikes_are_limited_in_number() -> None:
    watched = calm()
    for _ in range(MOST_TOLD + 5):
        watched.feed([9.0, *noise(5)])
    assert len(watched.notices) == MOST_TOLD
    assert "not told" in watched.notices[-1][1]


def test_skip_leaves_updates_out_until_it_is_no_matter_of_a_few_rows() -> None:
    watched = calm("skip", patience=2)
    assert watched.feed([9.0]) == [False]
    assert watched.feed(noise(3)) == [True] * 3
    assert watched.feed(noise(6, level=9.0)) == [False, False, True, True, True, True]
    assert [code for code, *_ in watched.notices] == ["loss_spike", "loss_spike", "loss_spike_stays"]
    assert watched.due() is None
    assert watched.spikes.is_trusted


@pytest.mark.parametrize("action", ["rollback", "stop"])
def test_only_spikes_in_a_row_are_acted_on(action: Action) -> None:
    watched = calm(action, patience=3)
    assert watched.spikes.needs_checkpoint
    watched.feed([9.0, 9.5, 1.2, 9.0, 8.0])
    assert watched.due() is None
    assert not watched.spikes.is_trusted
    assert watched.feed([8.5]) == [True]
    spike = watched.due()
    assert spike is not None
    assert (spike.first, spike.last, spike.loss, spike.rows) == (64, 66, 9.0, (63, 64, 65))
    assert "9.00 at steps 64 to 66" in spike.sentence or "9 at steps 64 to 66" in spike.sentence
    assert watched.spikes.may_go_back == (action == "rollback")


def test_skipped_steps_stay_skipped_and_rollbacks_are_limited() -> None:
    watched = calm("rollback", patience=1)
    before = watched.spikes.facts()
    for number in range(ROLLBACK_LIMIT):
        assert watched.spikes.may_go_back
        watched.feed([9.0])
        spike = watched.due()
        assert spike is not None
        watched.spikes.leave_out(spike)
        watched.spikes.restore(json.loads(json.dumps(before)))
        assert len(watched.spikes.left_out) == number + 1
        assert watched.due() is None
    assert not watched.spikes.may_go_back


@given(st.integers(0, 200), st.lists(st.sampled_from([1.1, 1.2, 1.3, 7.0, 9.0]), max_size=60))
def test_a_resumed_run_decides_like_an_uninterrupted_run(cut: int, tail: list[float]) -> None:
    losses = noise(200, seed=5) + tail
    whole, first = Watched("rollback", patience=2), Watched("rollback", patience=2)
    whole.feed(losses)
    first.feed(losses[:cut])
    second = Watched("rollback", patience=2)
    second.spikes.restore(json.loads(json.dumps(first.spikes.facts())))
    second.step = cut
    second.feed(losses[cut:])
    assert second.spikes.facts() == whole.spikes.facts()


def test_a_fixed_limit_holds_from_the_first_step_and_alone() -> None:
    watched = Watched("stop", threshold=0.0, patience=2, limit=5.0)
    watched.feed([6.0, 4.9, 6.0])
    ((_, message, _), _) = watched.notices
    assert "6 at step 1; train.loss_limit is 5" in message or "6.00 at step 1; train.loss_limit is 5" in message
    assert watched.due() is None
    watched.feed([7.0])
    assert watched.due() is not None
    alone = Watched(threshold=0.0)
    alone.feed([*noise(CALM), 99.0])
    assert alone.notices == []


def test_a_checkpoint_of_a_run_that_only_warned_of_spikes_can_be_resumed() -> None:
    watched = calm("rollback")
    watched.spikes.restore(None)
    watched.feed([50.0])
    assert watched.notices == []
    watched.feed(noise(CALM))
    watched.spikes.begin_anew()
    watched.feed([50.0])
    assert watched.notices == [], "other weights have another loss"
