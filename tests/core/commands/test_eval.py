"""``eval``: errors before any model is asked; the rest is in tests/e2e/test_prompt_sets.py."""

from __future__ import annotations

from pathlib import Path

from tests.cases import cases, tables

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
