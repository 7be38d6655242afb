from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import tomli

import sample_data
from core.config.derived import step_count
from core.config.document import ConfigDocument
from core.config.facts import Facts, Unkept, read_shape
from core.config.rules.check import RULES, check_rules
from core.config.schema import Config, find_option
from core.memory.planner import disk_need
from core.models.architecture.architecture import read_architecture
from tests.cases import cases, tables
from tests.core.models.architecture import published
from tests.core.models.architecture.test_gguf_header import write_gguf

LLAMA = read_architecture(published.LLAMA_3_8B, "llama")
GPT2 = read_architecture(published.GPT_2, "gpt2")
MIXTRAL = read_architecture(published.MIXTRAL_8X7B, "mixtral")


def _on_disk(free: int) -> Facts:
    """A known model, and so much room on the disk."""
    return Facts(model=LLAMA, free_bytes=free, disk_need=partial(disk_need, LLAMA))


def config(options: str = "") -> Config:
    """A valid configuration with options as TOML: ``train.epochs = 2.0; train.seed = 7``."""
    return Config.model_validate(tomli.loads("\n".join(["data.train = 'rows.jsonl'", *options.split("; ")])))


def _blind(option: str) -> Facts:
    """A device that cannot keep an option."""
    return Facts(unkept=lambda _: [Unkept(option, f"It is blind, so {option} cannot be kept.", "Remove the option.")])


MODELS = {"llama": LLAMA, "gpt2": GPT2, "mixtral": MIXTRAL, "wider": replace(LLAMA, hidden=LLAMA.hidden + 8)}


def facts_of(
    model: str = "", free: int = 0, blind: str = "", missing_trackers: list[str] | None = None, **known: Any
) -> Facts:
    """Facts as the tables have them."""
    if free or blind:
        return _on_disk(free) if free else _blind(blind)
    return Facts(model=MODELS.get(model), missing_trackers=frozenset(missing_trackers or []), **known)


TABLES = tables(__file__)
BROKEN = [(*row[:3], facts_of(**(row[3:] or [{}])[0])) for row in TABLES["broken"]]
KEPT = [(row[0], facts_of(**(row[1:] or [{}])[0])) for row in TABLES["kept"]]


@cases(("options", "level", "words", "facts"), BROKEN)
def test_a_broken_rule_is_reported_once(options: str, level: str, words: str, facts: Facts) -> None:
    (remark,) = check_rules(config(options), facts)
    assert remark.level == level
    assert words in remark.sentence
    assert remark.sentence.endswith(".")
    assert remark.hint.endswith(".")
    assert any(name in remark.sentence for name in remark.options) or "checkpoint" in remark.sentence


@cases(("options", "facts"), KEPT)
def test_a_rule_that_is_kept_is_silent(options: str, facts: Facts) -> None:
    assert check_rules(config(options), facts) == []


def test_every_rule_is_broken_above_and_is_about_options_that_exist() -> None:
    broken = {
        rule
        for options, _, _, facts in BROKEN
        for rule in range(len(RULES))
        if any(True for _ in RULES[rule].check(config(options), facts))
    }
    assert broken == set(range(len(RULES)))
    for rule in RULES:
        assert rule.says.endswith(".")
        assert all(find_option(name) for name in rule.options)


def test_errors_come_first() -> None:
    remarks = check_rules(config("eval.baseline = true; template.name = 'chatml'; template.file = 'a'"))
    assert [remark.level for remark in remarks] == ["error", "warning"]


def test_the_sample_breaks_no_rule() -> None:
    document = ConfigDocument.load(sample_data.path("tickets.toml"))
    assert document.problems() == {}
    assert document.remarks(Facts(rows=400)) == []


def test_steps_are_counted_as_the_worker_does() -> None:
    assert step_count(config(), None) is None
    assert step_count(config("train.epochs = 1.5"), 17) == 5
    assert step_count(config("train.max_steps = 7"), 17) == 7


@cases("free", [6 * 10**8, 10**9, 17 * 10**8, 2 * 10**9, 2_190_000_000])
def test_with_as_many_checkpoints_as_are_advised_there_is_room(free: int) -> None:
    facts = _on_disk(free)
    (remark,) = check_rules(config(), facts)
    match = re.search(r"Lower checkpoint.keep to (\d+)", remark.hint)
    if match is None:
        assert remark.hint == "Make room."
        assert check_rules(config("checkpoint.keep = 1"), facts) != []
    else:
        assert check_rules(config(f"checkpoint.keep = {match[1]}"), facts) == []
        assert check_rules(config(f"checkpoint.keep = {int(match[1]) + 1}"), facts) != []


def test_a_shape_is_read_from_directories_and_gguf_files_and_unknown_where_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(published.LLAMA_3_8B))
    write_gguf(tmp_path / "small.gguf")
    assert read_shape("model", tmp_path) == read_shape(str(tmp_path / "model")) == LLAMA
    small = read_shape("small.gguf", tmp_path)
    assert small is not None
    assert (small.vocabulary, small.depth, small.positions) == (120, 2, 512)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03")
    (tmp_path / "empty.gguf").touch()
    for name in ("nowhere", "", "a\0b", "~nobody/x", "broken.gguf", "empty.gguf", "nobody/nothing"):
        assert read_shape(name, tmp_path) is None
