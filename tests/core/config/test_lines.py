from __future__ import annotations

import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from core.config.lines import line_of, repeated_line
from tests.cases import cases

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


@cases(
    ("path", "line"),
    [
        ("data", 3),
        ("data.train", 4),
        ("data.eval", 10),
        ("data.columns", 14),
        ("method", 16),
        ("method.rank", 17),
        ("train", 18),
        ("train.epochs", 19),
        ("chat", 20),
        ("train.rank", None),
        ("chat.system", None),
        ("memory", None),
    ],
)
def test_a_key_is_found_however_it_is_written(path: str, line: int | None) -> None:
    assert line_of(TEXT, *path.split(".")) == line


def test_keys_at_the_top_and_in_one_line() -> None:
    text = 'data.train = "a"\ndata.eval = "b"\ntrain = {epochs = 1, seed = 2}\n'
    assert line_of(text, "data", "eval") == 2
    assert line_of(text, "data") == 1
    assert line_of(text, "train", "seed") == 3


def test_what_is_no_toml_has_no_lines() -> None:
    assert line_of("[data\n", "data") is None
    assert line_of("", "data") is None


@cases(
    ("text", "line"),
    [
        ("a = 1\nb = 2\na = 3\n", 3),
        ("[a]\n[b]\n[a]\n", 3),
        ("a = [\n1,\n2]\na = 1", 4),
        ("a = 1\n[b]\n", None),
        ("a = [\n", None),
        ("", None),
    ],
)
def test_where_something_is_a_second_time(text: str, line: int | None) -> None:
    assert repeated_line(text) == line


def test_a_value_without_end_in_sight_is_given_up() -> None:
    rows = "\n".join('  "row",' for _ in range(4000))
    assert line_of(f"[data]\ntrain = [\n{rows}\n]\n", "data", "train") in (None, 2)


KEYS = st.text("abcdefgh_", min_size=1, max_size=5)
VALUES = st.sampled_from(['"x"', "1", "[\n 1,\n 2,\n]", '"""\n[a]\nb = 1\n"""', "{a = 1}"])
FILLING = st.sampled_from(["", "\n", "# [a]\n", "# a = 1\n\n"])


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, st.tuples(FILLING, VALUES), max_size=4), min_size=1, max_size=4))
def test_every_key_of_any_file_is_found_where_it_was_written(
    tables: dict[str, dict[str, tuple[str, str]]],
) -> None:
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
