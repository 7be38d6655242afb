"""Flipped answers: between models of one evaluation, between runs, and before and after training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from core.evaluation.flips import Flips, chance_line, flips_line, flips_of
from core.evaluation.held_out import MOST_CHARACTERS, answers_path, keep_answers, kept_steps, read_answers
from core.evaluation.prompt_set import PromptItem
from core.evaluation.record import Answered, EvaluationRecord, folder_of, make_folder
from core.evaluation.report import flip_lines, flips_to_json, flips_to_markdown
from core.evaluation.run_answers import RunAnswers, answers_of_runs, answers_of_training, answers_to_lines
from core.runs.record.events import FinishedEvent
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from tests.cases import cases
from tests.core.runs.helpers import config_for, live_state, write_events


def item(question: str, expected: str | None = "yes", system: str = "") -> PromptItem:
    first = ({"role": "system", "content": system},) if system else ()
    return PromptItem(question, (*first, {"role": "user", "content": question}), expected)


def record(
    items: Sequence[PromptItem], answers: Mapping[str, Sequence[Answered | None]], state: str = "done"
) -> EvaluationRecord:
    names = tuple(answers)
    listed = {name: list(found) for name, found in answers.items()}
    return EvaluationRecord(
        "1", 0.0, "set", "0", 0, tuple(items), names, names, {"max_new_tokens": 9}, listed, state  # type: ignore[arg-type]
    )  # fmt: skip


def scored(*scores: float | None, metric: str = "exact_match") -> list[Answered | None]:
    """An answer for each score; no answer for -1, and one without scores for None."""
    answers: list[Answered | None] = []
    for score in scores:
        found = {} if score is None else {metric: score}
        answers.append(None if score == -1 else Answered(f"said {score}", scores=found))
    return answers


def test_each_question_is_counted_once_and_the_rest_is_named() -> None:
    # Of each question: right or wrong before, and now.
    before = scored(1, 1, 0, 0, 1, 1, None, -1)
    after = scored(1, 0, 1, 0, 0, 0, 1, 1)
    names = ["a", "b", "c", "d", "e", "b", "f", "g"]
    found = record([item(name) for name in names], {"new": after, "old": before})
    (flips,) = flips_of(found, "exact_match")
    assert (flips.before, flips.after) == ("old", "new")
    assert (flips.broken, flips.mended) == ((1, 4), (2,)), "the second b repeats the first"
    assert (flips.compared, flips.right) == (5, 1)
    assert [flips.is_mended(place) for place in (1, 2, 3)] == [False, True, None]
    assert flips_line(flips) == "old → new: 2 of 5 answers went right → wrong, 1 wrong → right, by exact match."
    assert flips.notes == (
        "1 question without an answer of both is left out.",
        "1 question that nothing can call right or wrong is left out.",
        "1 question that repeats another is counted once.",
    )
    shown = flip_lines(found, flips, most=1)
    assert "  b  b" in shown
    assert "  … and 1 more; --json has all of them." in shown
    assert shown.index("right → wrong") < shown.index("wrong → right")
    told = flips_to_json(found, flips)
    assert [row["id"] for row in told["right_to_wrong"]] == ["b", "e"]
    assert told["wrong_to_right"] == [
        {"id": "c", "question": "c", "expected": "yes", "before": "said 0", "after": "said 1"}
    ]
    assert "### right → wrong, old → new\n\n#### b\n" in flips_to_markdown(found, (flips,))


def test_the_same_words_in_another_conversation_are_another_question() -> None:
    items = [item("a"), item("a", "no"), item("a", system="be brief"), item("a", " yes ")]
    found = record(items, {"new": scored(0, 0, 0, 0), "old": scored(1, 1, 1, 1)})
    assert flips_of(found, "exact_match")[0].broken == (0, 1, 2)


@cases(
    ("metric", "said"), [("f1", "token F1 of at least 0.5"), ("check", "check of at least 0.5"), ("schema", "fits the")]
)
def test_a_right_answer_has_half_of_the_score(metric: str, said: str) -> None:
    found = record(
        [item(name) for name in "abc"],
        {"new": scored(0.49, 0.5, 0.9, metric=metric), "old": scored(0.5, 0.49, 0.6, metric=metric)},
    )
    (flips,) = flips_of(found, metric)  # type: ignore[arg-type]
    assert (flips.broken, flips.mended, flips.right) == ((0,), (1,), 1)
    assert said in flips_line(flips)
    assert "no question has an expected answer" in flips_line(flips_of(found, None)[0])


@cases(
    ("broken", "mended", "chance"),
    # The tails of a fair coin, by hand: 2 · 1/2⁵, 2 · (1 + 5)/2⁵, 2 · (1 + 10 + 45)/2¹⁰.
    [(0, 5, 0.0625), (4, 1, 0.375), (2, 8, 0.109375), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_chance_is_the_exact_sign_test(broken: int, mended: int, chance: float) -> None:
    flips = Flips("a", "b", "exact_match", tuple(range(broken)), tuple(range(broken, broken + mended)))
    assert flips.chance == pytest.approx(chance)


def test_chance_is_told_in_words() -> None:
    def told(broken: int, mended: int) -> str:
        return chance_line(Flips("a", "b", "check", tuple(range(broken)), tuple(range(broken, broken + mended))))

    assert told(0, 0) == ""
    assert told(4, 1) == "Two equally good models split at least as unevenly in 38 % of cases: this may be chance."
    assert told(0, 6) == "Two equally good models split at least as unevenly in 3.1 % of cases."
    assert told(0, 9000) == "Two equally good models split at least as unevenly in less than 0.1 % of cases."


@pytest.fixture
def home(private_home: Path) -> Path:
    return private_home


def train(home: Path, name: str, answers: Mapping[int, Mapping[str, str]], *, live: bool = False) -> Run:
    """A run that has answered questions, each with "yes" expected, at some steps."""
    run = create_run(config_for(home), name)
    best = None
    for step, given in answers.items():
        best = best or step or None
        keep_answers(run, step, [item(question) for question in given], list(given.values()), 9, best=best)
    last = max(answers, default=3)
    (live_state(step=last) if live else RunState(state="finished", step=last, total_steps=last)).write(run.state_path)
    write_events(run, *([] if live else [FinishedEvent(t=1.0, reason="done", step=last, adapter="adapter")]))
    return run


def lines(answers: RunAnswers) -> str:
    return "\n".join(answers_to_lines(answers))


def test_the_first_the_best_and_the_newest_answers_are_kept(home: Path) -> None:
    run = train(home, "run", {0: {"a": "no"}, 10: {"a": "no"}, 20: {"a": "yes"}, 30: {"a": "no"}})
    assert kept_steps(run) == [0, 10, 30], "the best one is that of step 10"
    assert answers_path(run, 30).stat().st_mode & 0o777 == 0o600
    kept = read_answers(run, 30).answers[f"{run.id}@30"]
    assert [(answer.text, answer.scores["exact_match"]) for answer in kept if answer is not None] == [("no", 0.0)]
    # Back at an earlier checkpoint, the run answers step 20 again; a killed worker has left half a file.
    (torn := answers_path(run, 20).with_name(".step-00000020.json.x7.tmp")).write_text("{")
    keep_answers(run, 20, [item("a")], ["yes"], 9, best=10)
    assert kept_steps(run) == [0, 10, 20]
    assert not torn.exists()


def test_secrets_are_not_kept_and_neither_is_what_would_be_too_large(home: Path) -> None:
    run = create_run(config_for(home), "run")
    secret = "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7xY9zA1cD3e"
    long = "some words " * (MOST_CHARACTERS // 22)
    asked = [replace(item(question), id="1") for question in (f"my key is {secret}", long, f"{long} again")]
    keep_answers(run, 1, asked, [secret, "yes", "yes"], 9, best=None)
    text = answers_path(run, 1).read_text(encoding="utf-8")
    assert text.count(secret) == 0
    assert "my key is ***" in text
    kept = read_answers(run, 1)
    assert (len(kept.items), kept.skipped) == (2, 1)


def test_two_runs_are_paired_by_question_and_expected_answer(home: Path) -> None:
    old = train(home, "old", {0: {"a": "no"}, 9: {"a": "yes", "b": "yes", "c": "no", "only old": "no"}})
    new = train(home, "new", {9: {"only new": "yes", "c": "yes", "b": "yes", "a": "no"}})
    old, new = sorted((old, new), key=lambda run: run.id)
    for order in ([old, new], [new, old]):
        found = answers_of_runs(order)
        (flips,) = found.flips
        assert (flips.before, flips.after) == (f"{old.id}@9", f"{new.id}@9"), "from the older to the newer run"
        assert found.record is not None
        questions = [found.record.items[place].question for place in (*flips.broken, *flips.mended)]
        assert (questions, flips.compared) == ((["a", "c"] if "old" in old.id else ["c", "a"]), 3)
        assert any("1 question was put to" in note and "only old" in note for note in found.notes)
        assert any("1 question was put to" in note and "only new" in note for note in found.notes)


def test_before_and_after_training(home: Path) -> None:
    run = train(home, "run", {0: {"a": "no", "b": "yes"}, 9: {"a": "yes", "b": "no"}})
    (flips,) = answers_of_training(run).flips
    assert (flips.before, flips.after, flips.broken, flips.mended) == ("base", f"{run.id}@9", (1,), (0,))
    first = train(home, "later", {3: {"a": "no"}, 9: {"a": "yes"}})
    assert answers_of_training(first).flips[0].before == f"{first.id}@3", "the first evaluation, without a baseline"
    single = train(home, "single", {9: {"a": "yes"}})
    assert "There are no answers of the untouched model to held-out rows" in lines(answers_of_training(single))


def test_what_cannot_be_compared_is_a_sentence_each(home: Path) -> None:
    full, empty = train(home, "full", {9: {"a": "yes"}}), train(home, "empty", {})
    told = lines(answers_of_runs([full, empty]))
    assert told.startswith("There are no answers of ")
    assert "empty to held-out rows: train with eval.exact_match" in told
    assert "have no held-out row in common." in lines(answers_of_runs([full, train(home, "other", {9: {"b": "no"}})]))
    going = train(home, "going", {4: {"a": "no"}}, live=True)
    assert "going is not over: its answers are those after step 4." in lines(answers_of_runs([full, going]))
    begun = lines(answers_of_runs([full, train(home, "begun", {}, live=True)]))
    assert "begun is not over, and has kept no answers yet." in begun
    damaged = train(home, "damaged", {9: {"a": "no"}})
    answers_path(damaged, 9).write_text("{", encoding="utf-8")
    told = lines(answers_of_runs([full, damaged]))
    assert "There are no answers of" in told
    assert "step-00000009.json is not a record of an evaluation." in told
    three = answers_of_runs([full, empty, going])
    assert len(three.flips) == 1
    assert any("There is nothing to compare with of" in note for note in three.notes)


def evaluate(run: Run, found: EvaluationRecord, name: str) -> None:
    folder = folder_of(run)
    make_folder(folder)
    (folder / f"{name}.json").write_text(json.dumps(replace(found, id=name).to_dict()), encoding="utf-8")


def test_without_answers_of_trainings_those_of_evaluations_are_compared(home: Path) -> None:
    old, new = sorted((train(home, "one", {}), train(home, "two", {})), key=lambda run: run.id)
    items = [item("a"), item("b")]
    evaluate(old, record(items, {old.id: scored(1, 1), "base": scored(0, 0)}), "1")
    evaluate(new, record(items, {f"{new.id}@40": scored(0, -1)}, "running"), "1")
    found = answers_of_runs([old, new])
    assert (found.flips[0].broken, found.flips[0].compared) == ((0,), 1)
    assert "The evaluation 1 is unfinished: 1 of 2 answers." in found.notes
    assert answers_of_training(old).flips[0].mended == (0, 1)
    # Two programs may check different things.
    checked = [{metric: scored(1, 0, metric="check")} for metric in (old.id, new.id)]
    for run, answers, command in zip((old, new), checked, ("one", "two"), strict=True):
        told = record(items, answers)
        told.settings["check"] = [command]
        evaluate(run, told, "1")
    assert "have no score in common: check against check." in lines(answers_of_runs([old, new]))
