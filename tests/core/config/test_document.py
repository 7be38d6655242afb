from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.document import ConfigDocument, dump_config, line_of, load_config, valid_part
from core.config.explain import unknown_option
from core.config.schema import Option, find_option
from core.errors import UserError
from core.redact import secret_variable
from tests.cases import cases, tables
from tests.core.config.strategies import CHANGES, EVERY, MINIMAL
from tests.examples import examples

TABLES = tables(__file__)

AUTHORED = """\
# My tickets
[data] # rows
train = "rows.jsonl"  # the good ones

[train]
# gentle
learning_rate = 1e-4
epochs = 2 # twice
"""


@settings(max_examples=examples(40), deadline=None)
@given(CHANGES)
def test_a_configuration_written_out_reads_as_itself(changes: list[tuple[str, Any]]) -> None:
    document = ConfigDocument(MINIMAL, Path("/somewhere/run.toml"))
    for name, value in changes:
        document.set(name, value)
    config = document.validate()
    assert ConfigDocument(dump_config(config), Path("/elsewhere/run.toml")).validate() == config


@given(st.text(max_size=200) | st.text("[]={}\"'#.,\n abc123-_\\", max_size=60))
def test_any_text_is_a_configuration_or_one_sentence(text: str) -> None:
    try:
        document = ConfigDocument(text)
        document.validate()
    except UserError:
        return
    assert document.problems() == {}


SECRET = "hf_" + "aB3dE" * 7


@cases(("text", "line", "words"), TABLES["a_problem_names_file_line_and_key_and_repeats_no_secret"])
def test_a_problem_names_file_line_and_key_and_repeats_no_secret(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text.replace("SECRET", SECRET))
    document = ConfigDocument.load(path)
    with pytest.raises(UserError) as caught:
        document.validate()
    assert caught.value.message.startswith(f"{path}, line {line}: ")
    assert words in str(caught.value)
    assert caught.value.hint
    assert SECRET not in str(caught.value) + repr(document.problems())


@cases(("typed", "hint"), TABLES["only_what_is_near_is_suggested"])
def test_only_what_is_near_is_suggested(typed: str, hint: str) -> None:
    assert unknown_option(typed).hint.startswith(hint)


def test_what_cannot_be_read_is_one_sentence_and_at_once(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# \xe4\n")
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    with (tmp_path / "huge.toml").open("wb") as file:
        file.truncate(1 << 40)
    for name, words in (
        *(("missing", "no configuration file"), (".", "is a directory"), ("latin.toml", "not UTF-8")),
        *(("pipe.toml", "is a named pipe"), ("loop.toml", "symbolic links"), ("huge.toml", "is larger than 1 MiB")),
    ):
        with pytest.raises(UserError, match=words) as caught:
            load_config(tmp_path / name)
        assert str(tmp_path / name) in caught.value.message


@cases(("text", "line"), TABLES["invalid_toml_and_repeated_keys_name_their_line"])
def test_invalid_toml_and_repeated_keys_name_their_line(tmp_path: Path, text: str, line: int | str) -> None:
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(UserError, match=rf"my\.toml is not valid TOML: line {line}(, column \d+)?: .*\.$"):
        load_config(tmp_path / "my.toml")


def test_a_file_that_has_become_too_large_counts_as_changed(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(MINIMAL)
    document = ConfigDocument.load(path)
    with path.open("ab") as file:
        file.truncate(2 << 20)
    assert document.has_changed_on_disk
    with pytest.raises(UserError, match="was changed by another program"):
        document.save()


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "my.toml"
    path.write_text(
        '[data]\ntrain = ["a.jsonl", "/b.jsonl"]\neval = "../e.jsonl"\n'
        '[model]\nbase = "model"\n[template]\nfile = "t"\n'
    )
    config = load_config(path)
    assert config.data.train == [str(tmp_path / "a.jsonl"), "/b.jsonl"]
    assert config.data.eval == str(tmp_path.parent / "e.jsonl")
    assert config.model.base == str(tmp_path / "model")
    assert config.template.file == str(tmp_path / "t")
    path.write_text('[data]\ntrain = "a"\n[model]\nbase = "org/name"\n')
    assert load_config(path).model.base == "org/name"


@cases(("name", "raw", "value"), TABLES["values_typed_by_a_person"])
def test_values_typed_by_a_person(name: str, raw: str, value: object) -> None:
    document = ConfigDocument(MINIMAL)
    document.apply([f"{name}={raw}"])
    assert document.get(name) == value


@cases(("assignment", "said"), TABLES["assignments_that_make_no_sense_are_refused"])
def test_assignments_that_make_no_sense_are_refused(assignment: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        ConfigDocument(MINIMAL).apply([assignment])


def test_a_table_stays_on_one_line_and_comes_back() -> None:
    document = ConfigDocument(AUTHORED)
    document.set("data.train", ["a.jsonl", "b.jsonl"])
    document.set("data.columns", {"user": "the question", "assistant": 'an "answer"'})
    document.set("data.weights", [1, 0.5])
    text = document.dumps()
    assert 'columns = {user = "the question", assistant = "an \\"answer\\""}' in text
    config = ConfigDocument(text).validate()
    assert config.data.columns == {"user": "the question", "assistant": 'an "answer"'}
    assert ConfigDocument(dump_config(config)).validate().data == config.data
    names = {"user": " q\x00\x1b[31m\x7f ", "assistant": "[/red]\n\u2028"}
    document.set("data.columns", names)
    assert ConfigDocument(document.dumps()).validate().data.columns == names
    section = '[data]\ntrain = "x"\n\n[data.columns]\nuser = "q"\nassistant = "a"\n'
    assert ConfigDocument(section).validate().data.columns == {"user": "q", "assistant": "a"}
    wrong = "line 4: data.columns must be a table of texts with keys from messages, user"
    with pytest.raises(UserError, match=wrong):
        ConfigDocument(section.replace("user", "usr")).validate()


@cases("name", [option.name for option in EVERY if option.type == "integer"])
def test_no_number_is_beyond_what_readers_of_a_run_take(name: str) -> None:
    document = ConfigDocument(MINIMAL)
    document.apply([f"{name}={2**63}"])
    with pytest.raises(UserError, match=name):
        document.validate()


#: Values that no option accepts.
WRONG = st.sampled_from(["[[1]]", "{a = {b = 1}}", '"\t"', "1979-05-27", "[true]", "-1e300", "nan"])
SPACING = st.sampled_from(["", "\n", "# a comment\n", "\n\n# train = 1\n"])


@given(st.sampled_from(EVERY), WRONG, SPACING, st.sampled_from(["{key} = {value}", '"{key}"={value}  # why']))
def test_every_error_names_file_line_and_key(option: Option, value: str, spacing: str, style: str) -> None:
    lines = "" if option.name == "data.train" else 'data.train = "rows.jsonl"\n'
    header = f"[{option.section}]\n" if option.section != "data" else ""
    if option.section == "data" and not header:
        style = f"data.{style}"
    text = f"{lines}{spacing}{header}{spacing}{style.format(key=option.key, value=value)}\n"
    document = ConfigDocument(text, Path("my.toml"))
    if option.name == "chat.system" and value == '"\t"':
        return  # any text is a prompt
    line = text.count("\n")
    with pytest.raises(UserError) as caught:
        document.validate()
    assert caught.value.message.startswith(f"my.toml, line {line}: {option.name} must be ")
    assert list(document.problems()) == [option.name]
    assert caught.value.hint


@given(st.sampled_from(EVERY), st.text("abcdefgh_", min_size=1, max_size=6), SPACING)
def test_every_unknown_key_is_named_with_its_line(option: Option, extra: str, spacing: str) -> None:
    key = f"{option.key}{extra}"
    if find_option(f"{option.section}.{key}") is not None:
        return
    header = "" if option.section == "data" else f"{spacing}[{option.section}]\n"
    text = f'[data]\ntrain = "rows.jsonl"\n{header}{spacing}{key} = 1\n'
    with pytest.raises(UserError) as caught:
        ConfigDocument(text, Path("my.toml")).validate()
    assert caught.value.message == (f"my.toml, line {text.count(chr(10))}: There is no option {option.section}.{key}.")
    assert caught.value.hint.startswith(("Did you mean ", "The options of ", "Keys and tokens"))


def test_what_the_command_line_has_set_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('[data]\ntrain = "x"\n\n[method]\nrank = 8\n')
    for assignment, place in (("method.rank=0", "--set method.rank"), ("train.seed=-1", "--set train.seed")):
        document = ConfigDocument.load(path)
        document.apply([assignment])
        with pytest.raises(UserError) as caught:
            document.validate()
        assert caught.value.message.startswith(f"{place}: {place[6:]} must be ")


@cases(("typed", "written"), TABLES["a_number_is_written_as_it_was_typed"])
def test_a_number_is_written_as_it_was_typed(typed: str, written: str) -> None:
    document = ConfigDocument("[train]\nlearning_rate = 1e-4 # mine\nepochs = 1.0\n")
    document.set("train.learning_rate", float(typed), typed)
    assert document.dumps() == f"[train]\nlearning_rate = {written} # mine\nepochs = 1.0\n"
    assert document.get("train.learning_rate") == float(typed)


@cases(("text", "lines"), TABLES["lines"])
def test_a_key_is_found_however_it_is_written(text: str, lines: dict[str, int | None]) -> None:
    assert {path: line_of(text, *path.split(".")) for path in lines} == lines


KEYS = st.text("abcdefgh_", min_size=1, max_size=5)
VALUES = st.sampled_from(['"x"', "1", "[\n 1,\n 2,\n]", '"""\n[a]\nb = 1\n"""', "{a = 1}"])
FILLING = st.sampled_from(["", "\n", "# [a]\n", "# a = 1\n\n"])


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, st.tuples(FILLING, VALUES), max_size=4), min_size=1, max_size=4))
def test_every_key_of_any_file_is_found_where_it_was_written(tables: dict[str, dict[str, tuple[str, str]]]) -> None:
    text = ""
    places: dict[tuple[str, ...], int] = {}
    for section, keys in tables.items():
        text += f"[{section}]\n"
        places[section,] = text.count("\n")
        for key, (filling, value) in keys.items():
            text += f"{filling}{key} = {value}\n"
            places[section, key] = text.count("\n") - value.count("\n")
    tomlkit.parse(text)
    assert {path: line_of(text, *path) for path in places} == places


@cases(("text", "values"), TABLES["valid_parts"])
def test_what_is_wrong_has_its_default_and_the_rest_counts(text: str, values: dict[str, Any]) -> None:
    document = ConfigDocument(text)
    found = valid_part(document).model_dump()
    assert {name: found[name.partition(".")[0]][name.partition(".")[2]] for name in values} == values
    assert document.dumps() == text


#: Value of a secret variable, which does not look like a secret.
HIDDEN = "plain horse 4711"


@cases(("name", "value"), TABLES["the_value_of_a_secret_variable_is_refused_with_its_key"])
def test_the_value_of_a_secret_variable_is_refused_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("MY_API_KEY", HIDDEN)
    path = tmp_path / "x.toml"
    path.write_text(f'data.train = "rows.jsonl"\n{name} = {value}\n')
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert caught.value.message == f"{path}, line 2: {name} holds the value of the variable MY_API_KEY."
    assert HIDDEN not in str(caught.value)
    assert name in ConfigDocument.load(path).problems()


@cases(
    ("option", "secret", "holds"),
    [("model.base", SECRET, "a Hugging Face token"), ("tracking.name", HIDDEN, "the value of the variable MY_API_KEY")],
)
def test_a_secret_behind_set_is_refused_unless_a_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, secret: str, holds: str
) -> None:
    monkeypatch.setenv("MY_API_KEY", HIDDEN)
    path = tmp_path / "my.toml"
    path.write_text(MINIMAL)
    with pytest.raises(UserError) as caught:
        load_config(path, [f"{option}={secret}"])
    assert caught.value.message == f"--set {option}: {option} holds {holds}."
    assert secret not in str(caught.value)
    assert "HF_TOKEN" in caught.value.hint
    (tmp_path / secret).touch()
    assert load_config(path, [f"data.train={secret}"]).data.train == str(tmp_path / secret)


@cases(("variable", "value", "text", "is_one"), TABLES["values_of_variables_that_count_as_secrets"])
def test_values_of_variables_that_count_as_secrets(variable: str, value: str, text: str, is_one: bool) -> None:
    assert secret_variable(text, {variable: value}) == (variable if is_one else None)
