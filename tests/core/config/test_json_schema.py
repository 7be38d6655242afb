from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from core.config.document import ConfigDocument
from core.config.json_schema import DIALECT, json_schema
from core.config.schema import Option, sections
from tests.cases import cases
from tests.core.config.strategies import CHANGES, EVERY, MINIMAL
from tests.examples import examples

SCHEMA = json_schema()


def accepts(text: str) -> bool:
    return bool(Draft202012Validator(SCHEMA).is_valid(tomlkit.parse(text).unwrap()))


def test_it_is_a_schema_of_the_draft_it_names_without_null_and_references() -> None:
    assert SCHEMA["$schema"] == DIALECT == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(SCHEMA)
    text = json.dumps(SCHEMA)
    assert '"$ref"' not in text
    assert ": null" not in text
    assert '"null"' not in text


def test_every_option_is_there_with_what_is_declared() -> None:
    assert list(SCHEMA["properties"]) == list(sections())
    found = {
        f"{section}.{key}": value
        for section, table in SCHEMA["properties"].items()
        for key, value in table["properties"].items()
    }
    assert list(found) == [option.name for option in EVERY]
    for option in EVERY:
        value = found[option.name]
        assert option.help in value["description"]
        assert option.manual.about in value["description"]
        assert value.get("default") == option.default


def test_blanks_may_end_an_answer_and_are_no_name() -> None:
    assert accepts(MINIMAL + '\n[chat]\nstop = "\\t "\n')
    assert not accepts(MINIMAL + '\n[chat]\nstop = ""\n')
    assert not accepts(MINIMAL + '\n[tracking]\nname = "\\t "\n')


@settings(max_examples=examples(40))
@given(CHANGES)
def test_what_is_valid_passes(changes: list[tuple[str, Any]]) -> None:
    document = ConfigDocument(MINIMAL)
    for name, value in changes:
        document.set(name, value)
    assert document.problems() == {}
    assert accepts(document.dumps())


#: A value of another type than any option's.
STRANGE = st.sampled_from([[[1]], [True], {"a": {"b": 1}}, "\t ", {"": ""}])


def beyond(option: Option) -> st.SearchStrategy[Any]:
    """Values that are none of the option's."""
    found: list[Any] = []
    if option.minimum is not None:
        found += [option.minimum - 1, *([option.minimum] if option.above else [])]
    if option.maximum is not None:
        found += [option.maximum + 1, *([option.maximum] if option.below else [])]
    return st.sampled_from(found) | STRANGE if found else STRANGE


@given(st.sampled_from(EVERY).flatmap(lambda option: st.tuples(st.just(option), beyond(option))))
def test_what_is_refused_does_not_pass(case: tuple[Option, Any]) -> None:
    option, value = case
    document = ConfigDocument(MINIMAL)
    document.set(option.name, value)
    if option.name == "chat.system" and isinstance(value, str):
        assert accepts(document.dumps())  # an empty prompt is one
        return
    if option.name == "chat.stop" and isinstance(value, str):
        assert accepts(document.dumps())  # a line end may end an answer
        return
    assert document.problems()
    assert not accepts(document.dumps())


@cases("text", [
    "[train]\nepochs = 1\n", MINIMAL + "[trian]\nepochs = 1\n", MINIMAL + "[train]\nepoch = 1\n",
    "stray = 1\n" + MINIMAL, '[data]\ntrain = "a"\ncolumns = {usr = "q"}\n', "[data]\ntrain = []\n",
])  # fmt: skip
def test_missing_and_unknown_keys_do_not_pass(text: str) -> None:
    assert not accepts(text)
    assert ConfigDocument(text, Path("a.toml")).problems()
