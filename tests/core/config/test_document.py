from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.document import ConfigDocument, dump_config, line_of, load_config, repeated_line, valid_part
from core.config.explain import unknown_option
from core.config.schema import Config, Option, find_option
from core.config.values import describe_type, parse_value
from core.errors import UserError
from core.redact import secret_variable
from tests.cases import cases
from tests.core.config.strategies import CHANGES, EVERY, MINIMAL
from tests.examples import examples

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
def test_comments_and_everything_else_survive_an_edit(changes: list[tuple[str, Any]]) -> None:
    document = ConfigDocument(AUTHORED)
    for name, value in changes:
        document.set(name, value)
    text = document.dumps()
    for comment in ("# My tickets", "# rows", "# the good ones", "# gentle", "# twice"):
        assert comment in text
    again = ConfigDocument(text)
    assert again.dumps() == text
    assert {name: again.get(name) for name, _ in changes} == {name: dict(changes)[name] for name, _ in changes}
    untouched = {"data.train": "rows.jsonl", "train.learning_rate": 1e-4, "train.epochs": 2}
    for name in untouched.keys() - dict(changes).keys():
        assert again.get(name) == untouched[name]
    assert again.problems() == {}


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


def test_removing_a_key_brings_back_its_default() -> None:
    document = ConfigDocument(AUTHORED)
    document.set("train.epochs", None)
    document.set("method.rank", None)
    assert document.get("train.epochs") is None
    assert document.validate().train.epochs == 1.0
    assert "# gentle" in document.dumps()


SECRET = "hf_" + "aB3dE" * 7


@cases(
    ("text", "line", "words"),
    [
        ('train = "x"\n', 1, 'train must be a section with keys, not "x".'),
        ('[[data]]\ntrain = "x"\n', 1, "data must be a section with keys, and is a list."),
        # Before the missing data.train.
        ('[data]\ntrian = "x"\n', 2, "There is no option data.trian."),
        ("[data]\n\ttrain\t=\t1979-05-27\n", 2, "data.train must be"),
        (f'[data]\ntrain = "x"\n[model]\nbase = "{SECRET}"\n', 4, "model.base holds a Hugging Face token."),
        (f'[data]\ntrain = ["x", "{SECRET}"]\n', 2, "data.train holds a Hugging Face token."),
        (f'[data]\ntrain = "x"\n[tracking]\nkey = "{SECRET}"\n', 4, "tracking"),
        (f'[data]\ntrain = "x"\n[train]\nseed = "{SECRET}"\n', 4, "train.seed holds a Hugging Face token."),
        (f'[data]\ntrain = "x"\nhf_token = "{SECRET}"\n', 3, "data.hf_token holds a Hugging Face token."),
        (f'hf_token = "{SECRET}"\n[data]\ntrain = "x"\n', 1, "hf_token holds a Hugging Face token."),
        ('[data]\ntrain = "x"\nwandb_api_key = "plain"\n', 3, "There is no option data.wandb_api_key."),
        (f'[data]\ntrain = "x"\n[chat]\nsystem = "say {SECRET}"\n', 4, "chat.system holds a Hugging Face token."),
        ('[data]\ntrain = "x"\n[train]\nlearnin_rate = 1\n', 4, "no option train.learnin_rate"),
        ('[data]\ntrain = "x"\n\n[method]\nrank = 0\n', 5, "method.rank must be a whole number from 1 to 1024, not 0"),
        ('[data]\ntrain = "x"\n[metod]\nrank = 1\n', 3, "no section [metod]"),
        ('[data]\ntrain = "x"\nformat = "xml"\n', 3, "data.format must be one of auto, messages"),
        ('[data]\ntrain = "x"\n[train]\nseed = "a"\n', 4, "train.seed must be a whole number"),
        ('data.train = "x"\n[method]\nrank = "16"', 3, 'rank must be a whole number from 1 to 1024, not "16".'),
        ('data.train = "x"\n[method]\nrank = true', 3, "rank must be a whole number from 1 to 1024, not true."),
        ('data.train = "x"\n[method]\nalpha = 0', 3, "method.alpha must be a number above 0, at most 8192, not 0."),
        ('data.train = "x"\n[method]\ndropout = 1.0', 3, "dropout must be a number from 0 to below 1, not 1.0."),
        ('data.train = "x"\n[method]\ndora = 1', 3, "method.dora must be true or false, not 1."),
    ],
)
def test_a_problem_names_file_line_and_key_and_repeats_no_secret(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    document = ConfigDocument.load(path)
    with pytest.raises(UserError) as caught:
        document.validate()
    assert caught.value.message.startswith(f"{path}, line {line}: ")
    assert words in caught.value.message
    assert caught.value.hint
    assert SECRET not in str(caught.value) + repr(document.problems())


def test_the_nearest_known_key_is_named() -> None:
    with pytest.raises(UserError, match=re.escape("Did you mean train.learning_rate?")):
        ConfigDocument(MINIMAL).apply(["train.lerning_rate=1"])
    with pytest.raises(UserError, match=re.escape("Did you mean [method]?")):
        ConfigDocument('[data]\ntrain="x"\n[metod]\n').validate()


@cases(
    ("typed", "hint"),
    [
        ("foo.bar", "The sections are model, "),
        ("foo", "The sections are model, "),
        ("train.foo", "The options of train are objective, "),
        ("train", "The options of train are objective, "),
        ("trian.epochs", "Did you mean train.epochs?"),
        ("train.rank", "Did you mean method.rank?"),
        ("learning_rate", "Did you mean train.learning_rate?"),
        ("seed", "Did you mean train.seed?"),
        ("night.dedline", "Did you mean night.deadline?"),
    ],
)
def test_only_what_is_near_is_suggested(typed: str, hint: str) -> None:
    assert unknown_option(typed).hint.startswith(hint)


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# \xe4\n")
    for name, words in (("missing", "no configuration file"), (".", "is a directory"), ("latin.toml", "not UTF-8")):
        with pytest.raises(UserError, match=words):
            load_config(tmp_path / name)


@cases(
    ("text", "line"),
    [
        ("[data]\ntrain = \n", r"2, column \d+"),
        ('[data]\ntrain = "x"\ntrain = "y"\n', 3),
        ('[data]\ntrain = "x"\n\n[data]\neval = "y"\n', 4),
        ('[data]\ntrain = [\n "x",\n "y",\n]\n[train]\nseed = 1\nseed = 2\n', 8),
        ('[data]\ncolumns = {user = "a"}\n[data.columns]\nuser = "b"\n', 3),
    ],
)
def test_invalid_toml_and_repeated_keys_name_their_line(tmp_path: Path, text: str, line: int | str) -> None:
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(UserError, match=rf"my\.toml is not valid TOML: line {line}(, column \d+)?: .*\.$"):
        load_config(tmp_path / "my.toml")


def test_what_is_no_regular_file_or_too_large_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    with (tmp_path / "huge.toml").open("wb") as file:
        file.truncate(1 << 40)
    for name, words in (("pipe", "is a named pipe"), ("loop", "symbolic links"), ("huge", "is larger than 1 MiB")):
        with pytest.raises(UserError, match=words) as caught:
            load_config(tmp_path / f"{name}.toml")
        assert caught.value.message.startswith(str(tmp_path / f"{name}.toml"))


def test_a_file_that_has_become_too_large_counts_as_changed(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(MINIMAL)
    document = ConfigDocument.load(path)
    with path.open("ab") as file:
        file.truncate(2 << 20)
    assert document.has_changed_on_disk
    with pytest.raises(UserError, match="has been changed by something else"):
        document.save()


def test_missing_data_is_said() -> None:
    with pytest.raises(UserError, match=re.escape("data.train is missing")):
        ConfigDocument("").validate()
    assert list(ConfigDocument("[data]\n").problems()) == ["data.train"]


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


def test_saving_is_whole_or_not_at_all(tmp_path: Path) -> None:
    document = ConfigDocument(AUTHORED)
    with pytest.raises(UserError, match="no file yet"):
        document.save()
    document.save(tmp_path / "my.toml")
    assert (tmp_path / "my.toml").read_text() == AUTHORED
    assert ConfigDocument.load(tmp_path / "my.toml").dumps() == AUTHORED
    with pytest.raises(UserError, match="cannot be written"):
        document.save(tmp_path / "missing" / "my.toml")


@cases(
    ("name", "raw", "value"),
    [
        ("train.epochs", "2.5", 2.5),
        ("train.max_steps", "1_000", 1000),
        ("train.max_steps", "", None),
        ("method.dora", "yes", True),
        ("data.train", "a.jsonl, b.jsonl", ["a.jsonl", "b.jsonl"]),
        ("data.train", '["a, b.jsonl"]', ["a, b.jsonl"]),
        ("data.train", "a.jsonl", "a.jsonl"),
        ("data.columns", '{user = "q", assistant = "a"}', {"user": "q", "assistant": "a"}),
        ("data.columns", 'user = "q"', {"user": "q"}),
        ("data.columns", "", None),
        ("data.weights", "1, 0.5", [1, 0.5]),
        ("data.weights", "[2]", [2]),
        ("method.target_modules", "all-linear", "all-linear"),
        ("method.target_modules", "q_proj", ["q_proj"]),
        ("method.name", "lora", "lora"),
    ],
)
def test_values_typed_by_a_person(name: str, raw: str, value: object) -> None:
    option = find_option(name)
    assert option is not None
    assert parse_value(option, raw) == value


@cases(("typed", "value"), [
    ('"07:00"', "07:00"), ("'07:00'", "07:00"), (" 07:00 ", "07:00"), ('"', '"'), ('"a" b "c"', '"a" b "c"'),
    ("it's", "it's"),
])  # fmt: skip
def test_a_text_may_be_set_in_quotes_as_in_the_file(typed: str, value: str) -> None:
    document = ConfigDocument(MINIMAL)
    document.apply([f"night.deadline={typed}"])
    assert document.get("night.deadline") == value


@cases("assignment", ["train.epochs", "epochs=1", "=3", "train.epochs=many", "method.dora=maybe"])
def test_assignments_that_make_no_sense_are_refused(assignment: str) -> None:
    with pytest.raises(UserError):
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


def test_a_column_is_named_to_the_letter() -> None:
    document = ConfigDocument('[data]\ntrain = "x"\n')
    names = {"user": " q\x00\x1b[31m\x7f ", "assistant": "[/red]\n\u2028"}
    document.set("data.columns", names)
    assert ConfigDocument(document.dumps()).validate().data.columns == names


def test_a_table_may_be_a_section_of_its_own() -> None:
    text = '[data]\ntrain = "x"\n\n[data.columns]\nuser = "q"\nassistant = "a"\n'
    assert ConfigDocument(text).validate().data.columns == {"user": "q", "assistant": "a"}
    with pytest.raises(UserError) as caught:
        ConfigDocument(text.replace("user", "usr")).validate()
    assert "line 4: data.columns must be a table of texts with keys from messages, user" in caught.value.message


@cases("raw", ["{user = }", "user", "[1"])
def test_a_table_that_is_no_toml_is_refused(raw: str) -> None:
    with pytest.raises(UserError, match="is not a TOML table"):
        ConfigDocument(MINIMAL).apply([f"data.columns={raw}"])


def test_every_option_is_described() -> None:
    names = [option.name for option in EVERY]
    assert len(set(names)) == len(names)
    for option in EVERY:
        assert option.help.endswith(".")
        assert describe_type(option)
        assert option.choices or option.type not in ("choice", "list")
    assert {"model.base", "data.train", "train.max_steps"} <= set(names)
    rank, train = find_option("method.rank"), find_option("data.train")
    assert rank is not None
    assert (rank.type, rank.minimum, rank.maximum, rank.default, rank.audience) == ("integer", 1, 1024, 16, "basic")
    assert train is not None
    assert train.required
    assert find_option("train") is None


def test_a_configuration_cannot_be_changed_by_accident() -> None:
    config = Config.model_validate({"data": {"train": "x"}})
    with pytest.raises(ValueError, match="frozen"):
        config.data.train = "y"  # type: ignore[misc]


@cases("name", [option.name for option in EVERY if option.type == "integer"])
def test_no_number_is_beyond_what_readers_of_a_run_take(name: str) -> None:
    document = ConfigDocument(MINIMAL)
    document.apply([f"{name}={2**63}"])
    with pytest.raises(UserError, match=name):
        document.validate()


def test_a_secret_behind_set_is_refused_unless_a_file_has_its_name(tmp_path: Path) -> None:
    (tmp_path / SECRET).write_text("{}")
    (tmp_path / "my.toml").write_text(f'[data]\ntrain = "{SECRET}"\n')
    assert load_config(tmp_path / "my.toml").data.train == str(tmp_path / SECRET)
    document = ConfigDocument(MINIMAL)
    document.apply([f"model.base={SECRET}"])
    with pytest.raises(UserError, match=re.escape("--set model.base: model.base holds")) as caught:
        document.validate()
    assert SECRET not in str(caught.value)
    assert "HF_TOKEN" in caught.value.hint


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


def test_a_long_value_is_cut_in_a_message() -> None:
    (sentence,) = ConfigDocument(f'{MINIMAL}[train]\nseed = "{"x" * 5000}"\n').problems().values()
    assert len(sentence) < 200


@cases(
    ("typed", "written"),
    [("3e-4", "3e-4"), ("0.0003", "0.0003"), ("3E-04", "3E-04"), (".0003", "0.0003"), ("1", "1.0")],
)
def test_a_number_is_written_as_it_was_typed(typed: str, written: str) -> None:
    document = ConfigDocument("[train]\nlearning_rate = 1e-4 # mine\nepochs = 1.0\n")
    document.set("train.learning_rate", float(typed), typed)
    assert document.dumps() == f"[train]\nlearning_rate = {written} # mine\nepochs = 1.0\n"
    assert document.get("train.learning_rate") == float(typed)


TEXT = '''\
# a comment

[data]
train = [
  "a",

  "b",  # not [train]
]
# eval = "c"
eval = """
[train]
rank = 1
"""
columns.user = "q"

[method]
"rank" = 1
  [ train ]  # and so on
epochs = 1
[chat]
'''


LINES: dict[str, dict[str, int | None]] = {
    TEXT: {
        "data": 3, "data.train": 4, "data.eval": 10, "data.columns": 14, "method": 16, "method.rank": 17, "train": 18,
        "train.epochs": 19, "chat": 20, "train.rank": None, "chat.system": None, "memory": None,
    },
    'data.train = "a"\ndata.eval = "b"\ntrain = {epochs = 1, seed = 2}\n': {"data": 1, "data.eval": 2, "train.seed": 3},
    "[data\n": {"data": None},
    "": {"data": None},
}  # fmt: skip


@cases(("text", "lines"), LINES.items())
def test_a_key_is_found_however_it_is_written(text: str, lines: dict[str, int | None]) -> None:
    assert {path: line_of(text, *path.split(".")) for path in lines} == lines


@cases(("text", "line"), [
    ("a = 1\nb = 2\na = 3\n", 3), ("[a]\n[b]\n[a]\n", 3), ("a = [\n1,\n2]\na = 1", 4), ("a = 1\n[b]\n", None),
    ("a = [\n", None), ("", None),
])  # fmt: skip
def test_where_something_is_a_second_time(text: str, line: int | None) -> None:
    assert repeated_line(text) == line


def test_a_value_without_end_in_sight_is_given_up() -> None:
    rows = "\n".join('  "row",' for _ in range(4000))
    assert line_of(f"[data]\ntrain = [\n{rows}\n]\n", "data", "train") in (None, 2)


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


def test_a_valid_one_is_taken_as_it_is(tmp_path: Path) -> None:
    document = ConfigDocument('[data]\ntrain = "rows.jsonl"\n[method]\nrank = 64\n', tmp_path / "a.toml")
    assert valid_part(document) == document.validate()


def test_what_is_wrong_has_its_default_and_the_rest_counts() -> None:
    document = ConfigDocument('[method]\nrank = "many"\nname = "lora"\n[train]\nbatch_size = 4\n')
    before = document.dumps()
    config = valid_part(document)
    assert (config.method.rank, config.method.name, config.train.batch_size) == (16, "lora", 4)
    assert document.dumps() == before


@cases(
    "text",
    ["", "method = 5\n", "[nothing]\nx = 1\n", "[train]\nbathc = 4\n", '[data]\ntrain = ""\n', "[data]\ntrain = 5\n"],
)
def test_there_is_always_one(text: str) -> None:
    assert valid_part(ConfigDocument(text)).train.batch_size == 8


def test_options_that_do_not_go_together_are_given_up() -> None:
    text = '[data]\ntrain = "a"\neval = "b"\neval_share = 0.1\n[train]\nbatch_size = 2\n'
    assert valid_part(ConfigDocument(text)).train.batch_size == 2


#: Value of a secret variable, which does not look like a secret.
HIDDEN = "plain horse 4711"


@cases(
    ("name", "value"),
    [
        ("tracking.name", f'"run-{HIDDEN}"'),
        ("tracking.project", f'"{HIDDEN}"'),
        ("chat.system", f'"The password is {HIDDEN}."'),
        ("data.eval", f'["a.jsonl", "{HIDDEN}.jsonl"]'),
        ("data.columns", f'{{user = "{HIDDEN}"}}'),
        ("model.base", f'"hf://owner/{HIDDEN}"'),
    ],
)
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


def test_the_value_of_a_secret_variable_is_refused_behind_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", HIDDEN)
    path = tmp_path / "x.toml"
    path.write_text(MINIMAL)
    with pytest.raises(UserError) as caught:
        load_config(path, [f"tracking.name=run-{HIDDEN}"])
    assert caught.value.message == "--set tracking.name: tracking.name holds the value of the variable MY_API_KEY."
    # A file may have its name.
    (tmp_path / HIDDEN).touch()
    assert str(load_config(path, [f"data.train={HIDDEN}"]).data.train).endswith(HIDDEN)


@cases(
    ("variable", "value", "text", "is_one"),
    [
        ("X_TOKEN", "correct-horse", "a correct-horse b", True),
        ("X_TOKEN", " correct-horse\n", "correct-horse", True),
        ("X_TOKEN", "a1b2c3d4", "run-a1b2c3d4", True),
        ("X_TOKEN", "correct-horse", "correct-donkey", False),
        ("X_TOKEN", "a1b2c3", "run-a1b2c3", False),
        ("DB_PASSWORD", "postgres", "postgres-tickets", False),
        ("DB_PASSWORD", "password", "Never tell a password.", False),
        ("GOOGLE_CREDENTIALS", "/etc/passwd", "/etc/passwd", False),
        ("HOME", "/home/anna/x", "/home/anna/x/rows.jsonl", False),
        ("EMPTY_TOKEN", "", "anything", False),
        ("BLANK_TOKEN", " " * 20, " " * 30, False),
    ],
)
def test_values_of_variables_that_count_as_secrets(variable: str, value: str, text: str, is_one: bool) -> None:
    assert secret_variable(text, {variable: value}) == (variable if is_one else None)
