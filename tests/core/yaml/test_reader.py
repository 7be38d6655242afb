"""YAML files of other tools: read within bounds, with the line of every key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.yaml.file import read_document
from core.yaml.reader import LIMIT
from tests.cases import cases, tables
from tests.core.data.sample_files import write
from tests.examples import examples

TABLES = tables(__file__)


def bomb(levels: int) -> str:
    """Ten to the power of so many values, in a few lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


def merge_bomb(levels: int) -> str:
    """Merge keys that double the number of merged mappings at each level."""
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n}\n  <<: [*a{n - 1}, *a{n - 1}]" for n in range(1, levels)]
    return "\n".join(lines)


def test_values_lines_aliases_and_merges(tmp_path: Path) -> None:
    source = read_document(write(tmp_path / "x.yml", TABLES["sample"]))
    assert source.values == {
        "plain": "hello",
        "again": "hello",
        "base": {"rank": 8, "alpha": 16},
        "table": {"rank": 8, "alpha": 32},
        "list": [{"path": "a"}],
        "day": "2026-01-02",
        "odd": "2e-4",
        "on": False,
    }
    assert source.lines["plain"] == 2
    assert source.lines["table.alpha"] == 8
    assert source.lines["list[1].path"] == 10
    assert source.place("odd") == f"{tmp_path}/x.yml, line 12"
    assert source.place("nothing") == f"{tmp_path}/x.yml"


@cases(("text", "values", "earlier"), TABLES["repeated"])
def test_the_last_of_repeated_keys_counts(
    tmp_path: Path, text: str, values: dict[str, Any], earlier: dict[str, list[int]]
) -> None:
    source = read_document(write(tmp_path / "x.yml", text))
    assert source.values == values == yaml.safe_load(text)
    assert source.repeated == earlier


@cases(
    ("text", "line", "part"),
    [
        *TABLES["refused"],
        ("a: 1\nb: 0b" + "1" * 9000 + "\nc: " + "1" * 9000 + "\n", 2, "a number that cannot be read"),
        (f"a: 1\n{'k' * 300}: 2\n", 2, "a key of 300 characters"),
        (bomb(12), 5, "stands for more than 20000 values"),
        (merge_bomb(20), None, "stands for more than 20000 values"),
        ("a: " + "[" * 60 + "]" * 60, 1, "nested too deep"),
        ("a: " + "[" * 20_000, None, "nested too deep"),
        (f"a: &a {'x' * 60_000}\nb: [{', '.join(['*a'] * 4000)}]\n", None, "stands for more than 20000 values"),
    ],
)
def test_what_is_no_configuration_is_one_sentence(tmp_path: Path, text: str, line: int | None, part: str) -> None:
    path = write(tmp_path / "x.yml", text)
    with pytest.raises(UserError) as caught:
        read_document(path)
    message = caught.value.message
    assert message.startswith(f"{path}, line {line}," if line else str(path))
    assert part in message
    assert "\n" not in message
    assert len(message) < 400
    assert caught.value.hint


def test_a_broken_file_does_not_quote_its_secrets(tmp_path: Path) -> None:
    token = "hf_" + "a1B2" * 9
    for text in (f"hf_token: {token} {{\n  x: [\n", f"a: !{token} 1\n"):
        with pytest.raises(UserError) as caught:
            read_document(write(tmp_path / "x.yml", text))
        assert token not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    big = write(tmp_path / "big.yml", "a: " + "x" * LIMIT)
    latin = write(tmp_path / "latin.yml", b"a: \xe4\xf6")
    zero = write(tmp_path / "zero.yml", b"a: \x00")
    pipe = tmp_path / "pipe.yml"
    os.mkfifo(pipe)
    for path, part in (
        (tmp_path / "gone.yml", "No such file"),
        (tmp_path, "Is a directory"),
        (pipe, "it is a named pipe"),
        (big, "larger than"),
        (latin, "not UTF-8"),
        (zero, "is not YAML"),
    ):
        with pytest.raises(UserError, match=part) as caught:
            read_document(path)
        assert caught.value.hint


@settings(max_examples=examples(150), deadline=None)
@given(st.text(st.sampled_from("ab:-[]{}&*!<>|?'\"#,\n 1.e\t%@`~"), max_size=60))
@example("a: &x {<<: *x}")
@example("<<: {<<: {a: 1}}")
@example("? &a x\n: *a")
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any.yml", text)
    source, refused = None, ""
    try:
        source = read_document(path)
    except UserError as error:
        refused = str(error)
    assert "\n" not in refused
    if source is not None:
        assert set(source.values) <= {name for name in source.lines if "." not in name} | {
            key for key in source.values if "<<" in text or "." in key
        }
