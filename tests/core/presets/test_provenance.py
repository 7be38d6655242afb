"""Provenance of values: every value except a default has one source, and the groups hold the run's values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli
from hypothesis import assume, given
from hypothesis import strategies as st

from core.config.compare import is_same
from core.config.document import ConfigDocument, dump_config
from core.config.schema import options
from core.importers.convert import import_config
from core.presets.library import find_preset, presets
from core.presets.provenance import Provenance, find_provenance
from core.presets.switch import Chosen, apply_switch, note_chosen, plan_switch
from core.runs.catalog.earlier import Origin, begin_from
from core.runs.record.store import Run
from tests.cases import cases, tables
from tests.core.config.strategies import CHANGES

TABLES = tables(__file__)

DEFAULTS = {option.name: option.default for option in options()}


def begun(name: str = "cpu-small", **chosen: Any) -> ConfigDocument:
    """A configuration as the app begins it."""
    document = ConfigDocument('[data]\ntrain = "rows.jsonl"\n')
    apply_switch(document, plan_switch(document, find_preset(name)))
    values = {option.replace("__", "."): value for option, value in chosen.items()}
    for option, value in values.items():
        document.set(option, value)
    document.rewrite(note_chosen(document.dumps(), Chosen(name, values)))
    return document


def run_of(directory: Path, document: ConfigDocument, name: str = "20261124-143600-faq") -> Run:
    """A run of a configuration, with its ``run.toml``."""
    run = Run(directory / name)
    run.path.mkdir()
    run.config_path.write_text(dump_config(document.validate()))
    return run


def groups(document: ConfigDocument, **known: Any) -> dict[str, list[str]]:
    found = find_provenance(document.validate(), document, **known)
    return {group.source: list(group.values) for group in found.groups}


def check_complete(document: ConfigDocument, found: Provenance) -> None:
    """Every value of ``run.toml`` that is no default is in one group, with that value."""
    sections = tomli.loads(dump_config(document.validate()))
    written = {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
    grouped = [(name, value) for group in found.groups for name, value in group.values.items()]
    assert len({name for name, _ in grouped}) == len(grouped)
    assert all(is_same(written.get(name), value) for name, value in grouped)
    differing = {name for name, value in written.items() if not is_same(value, DEFAULTS[name])}
    assert differing - {"data.train", "model.base"} <= dict(grouped).keys()


def test_a_configuration_of_defaults_has_no_source() -> None:
    document = ConfigDocument('[data]\ntrain = "rows.jsonl"\n[model]\nbase = "m"\n[train]\nbatch_size = 8\n')
    assert groups(document) == {}


def test_what_was_chosen_is_not_the_user_s_until_it_is_changed() -> None:
    document = begun(data__eval_share=0.1, eval__every_epochs=0.25, chat__top_k=64)
    found = groups(document)
    assert found["rows"] == ["data.eval_share", "eval.every_epochs"]
    assert found["model"] == ["chat.top_k"]
    assert set(found["preset"]) == set(find_preset("cpu-small").values)
    assert "user" not in found
    assert find_provenance(document.validate(), document).is_chosen
    document.set("data.eval_share", 0.2)
    document.set("chat.top_k", None)
    document.set("train.learning_rate", 0.002)
    changed = groups(document)
    assert changed["user"] == ["data.eval_share", "train.learning_rate", "chat.top_k"]
    assert changed["rows"] == ["eval.every_epochs"]


def test_a_default_that_replaces_the_preset_s_value_is_the_user_s() -> None:
    document = begun()
    assert find_preset("cpu-small").values["train.batch_size"] != DEFAULTS["train.batch_size"]
    document.set("train.batch_size", DEFAULTS["train.batch_size"])
    assert groups(document)["user"] == ["train.batch_size"]


def test_another_preset_is_the_user_s_choice() -> None:
    document = begun(data__eval_share=0.1)
    apply_switch(document, plan_switch(document, find_preset("cpu-small-quick-look")))
    found = find_provenance(document.validate(), document)
    assert not found.is_chosen
    assert [group.name for group in found.groups] == ["cpu-small-quick-look", ""]


def test_values_of_a_run_stay_its_own_and_are_known_once_it_is_gone(tmp_path: Path) -> None:
    first = ConfigDocument('[data]\ntrain = "a.jsonl"\neval = "b.jsonl"\n[train]\nlearning_rate = 1e-3\nepochs = 3.0\n')
    run = run_of(tmp_path, first)
    origin, document = Origin.of(run), begin_from(run)
    run.config_path.unlink()
    assert groups(document, origin=origin) == {"run": ["data.eval", "train.epochs", "train.learning_rate"]}
    document.set("train.learning_rate", 5e-4)
    document.set("train.epochs", None)
    assert groups(document, origin=origin) == {"run": ["data.eval"], "user": ["train.epochs", "train.learning_rate"]}


def test_values_of_a_file_are_the_file_s_until_they_are_edited(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[data]\ntrain = "a.jsonl"\neval = "b.jsonl"\n[train]\nlearning_rate = 1e-3\nbatch_size = 2\n')
    document = ConfigDocument.load(path)
    saved = document.dumps()
    assert groups(document, saved_text=saved) == {"file": ["data.eval", "train.batch_size", "train.learning_rate"]}
    document.set("train.batch_size", None)
    document.set("train.learning_rate", 2e-3)
    found = groups(document, saved_text=saved)
    assert found == {"file": ["data.eval"], "user": ["train.batch_size", "train.learning_rate"]}


def test_values_of_an_import_or_of_a_run_that_is_gone_are_not_taken_for_the_user_s(tmp_path: Path) -> None:
    path = tmp_path / "qlora.yml"
    path.write_text(
        "base_model: m\nadapter: lora\nlearning_rate: 0.0007\nnum_epochs: 3\nmicro_batch_size: 2\n"
        "gradient_accumulation_steps: 2\ndatasets:\n  - path: rows.jsonl\n    type: alpaca\n"
    )
    (tmp_path / "rows.jsonl").write_text('{"instruction": "i", "output": "o"}\n')
    document = ConfigDocument(import_config(path).toml)
    found = find_provenance(document.validate(), document)
    assert [(group.source, group.name) for group in found.groups] == [("user", "qlora.yml")]
    document = ConfigDocument('[data]\ntrain = "a.jsonl"\n[train]\nepochs = 3.0\n')
    gone = Origin.of(Run(tmp_path / "20261124-143600-faq"))
    (group,) = find_provenance(document.validate(), document, origin=gone).groups
    assert (group.source, group.name) == ("user", "20261124-143600-faq")


@cases("line", TABLES["a_comment_that_somebody_else_wrote_is_no_error"])
def test_a_comment_that_somebody_else_wrote_is_no_error(line: str) -> None:
    document = ConfigDocument(f'{line}\n[data]\ntrain = "rows.jsonl"\n[train]\nepochs = 2.0\n')
    assert groups(document)["user"] == ["train.epochs"]


@given(st.sampled_from(sorted(presets())), CHANGES, st.booleans())
def test_nothing_that_differs_is_without_a_source(name: str, changes: list[tuple[str, Any]], is_begun: bool) -> None:
    document = begun(name, data__eval_share=0.1) if is_begun else ConfigDocument('[data]\ntrain = "rows.jsonl"\n')
    for option, value in changes:
        document.set(option, value)
    assume(not document.problems())
    run = Origin(Run(Path("/runs/20261124-143600-faq")), {"train.epochs": 3.0})
    for origin in (None, run):
        check_complete(document, find_provenance(document.validate(), document, origin=origin))
