"""Every declared option with absurd values, in the file and by ``--set``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.config.document import ConfigDocument, dump_config, load_config
from core.config.schema import Config, Option, options
from core.errors import UserError
from tests.cases import cases
from tests.examples import examples

EVERY = list(options())
MINIMAL = 'data.train = "rows.jsonl"\n'
FS = "f" * 100_000
#: Values as TOML.
ABSURD = [
    *('""', '" "', f'"{"a" * 5000}"', f'"{"a/" * 3000}"', r'"a\u0000b"', r'"\u001b]0;x\u0007"', r'"\u202e"'),
    *(r'"\uD800"', f"0x{FS}", f"0x{FS[:5000]}", f"-{'9' * 400}", "9" * 5000, "-1", "0", "1e999", "-1e999", "nan"),
    *("-inf", "1e-320", "18446744073709551616", "true", "[]", "[[]]", "[1]", '["a", 1]', '["", "x"]', "[0]"),
    *(r'["a\u0000"]', f"[0x{FS}]", "[1e400]", "{}", "{a = 1}"),
    *('{user = "a"}', r'{user = "a\u0000"}', f"{{user = 0x{FS}}}", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z"),
    *("[" * 90 + "]" * 90, "[" * 3000 + "]" * 3000, "{a=" * 90 + "1" + "}" * 90, "{a=" * 2000 + "1" + "}" * 2000),
    *('"/"', '"/dev/zero"', '"/proc/self/mem"', '"~nosuchuser/x"', '"-"', '"hf://"', '"hf://a/b@"', '"x#y"'),
    *('["re:("]', f'["re:{"(" * 5000}"]', '["re:a{99999999999}"]', f'["{"[" * 3000}"]', "1]\ny = [2", '"a"\ny = 2'),
]
#: A few of every kind; the others are tried with them in the long tests.
SOME = ('""', r'"\u001b]0;x\u0007"', f"0x{FS[:5000]}", "1e999", "nan", "[[]]", "[" * 3000 + "]" * 3000, "1]\ny = [2")
assert {*SOME} < {*ABSURD}


def outcome(path: Path, *assignments: str) -> Config | UserError:
    """The configuration if it is accepted, read again as a run does; else the error."""
    try:
        config = load_config(path, assignments)
    except UserError as error:
        return error
    written = path.with_name("run.toml")
    written.write_text(dump_config(config), encoding="utf-8")
    assert repr(load_config(written)) == repr(config)
    return config


def refusal(path: Path, *assignments: str) -> str:
    """The message with which a configuration is refused."""
    found = outcome(path, *assignments)
    assert isinstance(found, UserError)
    return found.message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a valid configuration."""
    path = tmp_path / "x.toml"
    path.write_text(MINIMAL)
    return path


def changed(before: Config, after: Config) -> set[str]:
    """The options that differ between two configurations."""
    return {
        option.name
        for option in EVERY
        if len({repr(getattr(getattr(config, option.section), option.key)) for config in (before, after)}) > 1
    }


def check(option: Option, error: UserError, path: Path) -> None:
    """A short error names the option, another option of the same rule, or the place in the file."""
    assert 0 < len(error.message) < 700
    assert not set(error.message) & set("\x1b\x07\x00\u202e"), error.message
    named = any(f"{other.section}.{other.key}" in error.message for other in EVERY)
    assert named or option.section in error.message or error.message.startswith(str(path)), error.message


def refused_values(option: Option, values: Iterable[str], path: Path) -> dict[str, list[str]]:
    """The values that an option refuses, in the file and by ``--set``, each in a sentence that names it."""
    refused: dict[str, list[str]] = {"file": [], "set": []}
    for value in values:
        lines = {"data.train": '"rows.jsonl"', option.name: value}
        path.write_text("\n".join(f"{name} = {said}" for name, said in lines.items()) + "\n")
        found = [("file", outcome(path))]
        path.write_text(MINIMAL)
        found.append(("set", outcome(path, f"{option.name}={value}")))
        for way, error in found:
            if isinstance(error, UserError):
                check(option, error, path)
                refused[way].append(value)
    # These are nothing to any option: no TOML at all, and a list in a list.
    assert {"1]\ny = [2", "[[]]"} <= {*refused["file"]}, refused["file"]
    return refused


@cases("option", EVERY, ids=lambda option: option.name)
def test_an_absurd_value_is_taken_or_refused_in_a_sentence_that_names_the_key(option: Option, tmp_path: Path) -> None:
    refused_values(option, SOME, tmp_path / "x.toml")


@pytest.mark.long
@cases("option", EVERY, ids=lambda option: option.name)
def test_so_is_every_absurd_value_and_most_are_refused(option: Option, tmp_path: Path) -> None:
    for way, values in refused_values(option, ABSURD, tmp_path / "x.toml").items():
        # Behind an option of --set that is a text, everything is one.
        is_any_text = way == "set" and option.type in ("text", "paths", "list")
        assert is_any_text or len(values) > len(ABSURD) / 4, (way, len(values))


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(option=st.sampled_from(EVERY), value=st.text(max_size=40) | st.binary(max_size=20).map(os.fsdecode))
def test_any_text_behind_an_option_is_taken_as_its_value_alone_or_refused(
    path: Path, option: Option, value: str
) -> None:
    found = outcome(path, f"{option.name}={value}")
    if isinstance(found, UserError):
        check(option, found, path)
    else:
        assert changed(load_config(path), found) <= {option.name}


def test_a_number_of_too_many_digits_and_a_value_beyond_its_end_are_refused(path: Path) -> None:
    assert refusal(path, "data.weights=1]\nseed = [2") == "data.weights: [1]⏎seed = [2] is not a TOML list."
    path.write_text(f"{MINIMAL}[train]\nmax_steps = 0x{FS}\n")
    expected = f"{path}, line 3: train.max_steps must be a whole number from 1 to 1000000000, not "
    assert refusal(path).startswith(expected)


def test_a_name_that_is_not_utf8_is_named_as_such(path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    message = refusal(path, f"data.train={name}")
    assert "data.train" in message
    assert "is not UTF-8" in message
    document = ConfigDocument.load(path)
    document.set("data.train", name)
    with pytest.raises(UserError, match="is not written"):
        document.save()
    assert path.read_text() == MINIMAL
    # A directory may have such a name as long as nothing is written down.
    directory = path.with_name(name)
    directory.mkdir()
    path.rename(directory / "x.toml")
    config = load_config(directory / "x.toml")
    assert Path(str(config.data.train)).parent == directory
    with pytest.raises(UserError, match=r"data\.train is .*, which is not UTF-8"):
        dump_config(config)
