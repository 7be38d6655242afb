"""``eval``: errors before any model is asked, and flipped answers; the rest is in tests/e2e/test_prompt_sets.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.evaluation.targets import Target
from tests.cases import cases, tables
from tests.core.evaluation.scripted import ScriptedSession, targets

from .conftest import CommandLine

TABLES = tables(__file__)


@cases(("words", "said"), TABLES["wrong_usage_is_reported"])
def test_wrong_usage_is_reported(cli: CommandLine, words: list[str], said: str) -> None:
    cli.refused(said, "eval", *words, code=2)


def test_files_in_the_way_and_models_without_prompts_are_refused_first(cli: CommandLine, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out.md"
    model.mkdir()
    out.touch()
    for words, said in (
        (("--prompts", "p.txt", "--out", str(out)), "is there already"),
        ((), "No file of prompts is named"),
        (("--prompts", "p.txt", "--limit", "0"), "A limit must be at least 1"),
        (("--show",), "has not been evaluated yet"),
    ):
        cli.refused(said, "eval", str(model), *words)


def test_answers_that_went_wrong_are_listed_and_may_fail_a_script(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of six questions, the base is wrong on the last one, and the run on the first two.
    wrong = {"tuned": "ab", "base": "f"}
    session = ScriptedSession(lambda question, source: "no" if question in wrong[source] else "yes")

    def resolve(names: Sequence[str], against: Sequence[str] = ()) -> list[Target]:
        return targets(session, [*names, *against])

    monkeypatch.setattr("core.evaluation.evaluation.resolve_targets", resolve)
    prompts, free = tmp_path / "prompts.jsonl", tmp_path / "free.txt"
    rows = [{"prompt": question, "expected": "yes", "id": f"q-{question}"} for question in "abcdef"]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    free.write_text("a\n", encoding="utf-8")
    words = ("eval", "mine", "--against", "base", "--prompts", str(prompts), "--fail-on-flips")
    over = cli(*words, "1")
    assert over.code == 5
    assert "2 answers that base gives right went wrong; --fail-on-flips allows 1." in over.err
    out = over.out
    assert "base → mine: 2 of 6 answers went right → wrong, 1 wrong → right, by exact match." in out
    assert out.index("right → wrong\n  q-a  a\n") < out.index("  q-b  b\n") < out.index("wrong → right\n  q-f  f\n")
    assert cli(*words, "2").code == 0
    found = cli(*words, "0", "--json")
    assert found.code == 5
    (flips,) = found.json["flips"]
    assert [row["id"] for row in flips["right_to_wrong"]] == ["q-a", "q-b"]
    assert [row["id"] for row in flips["wrong_to_right"]] == ["q-f"]
    plain = cli("eval", "mine", "--against", "base", "--prompts", str(prompts))
    assert (plain.code, "q-a" in plain.out) == (0, False)
    assert "2 of 6 answers went right → wrong" in plain.out
    asked = len(session.asked)
    nothing = ("eval", "mine", "--against", "base", "--prompts", str(free), "--fail-on-flips", "0")
    cli.refused("Nothing can be right or wrong", *nothing)
    assert len(session.asked) == asked, "refused before a model is asked"
