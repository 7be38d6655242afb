"""``eval``: errors before any model is asked; the rest is in tests/e2e/test_prompt_sets.py."""

from __future__ import annotations

from pathlib import Path

from tests.cases import cases

from .conftest import CommandLine


@cases(
    ("words", "said"),
    [
        (["x", "--tasks", "a"], "go with --with lm-eval"),
        (["x", "--include", "d"], "go with --with lm-eval"),
        (["x", "--with", "lm-eval"], "--tasks is needed"),
        (["x", "y", "--with", "lm-eval", "--tasks", "a"], "one model at a time"),
        (["x", "--with", "lm-eval", "--tasks", "a", "--prompts", "p"], "do not go with --with"),
        (["x", "--with", "lm-eval", "--tasks", "a", "--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_wrong_usage_is_said(cli: CommandLine, words: list[str], said: str) -> None:
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
