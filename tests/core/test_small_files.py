"""Small files: size limits, special files, and JSON within limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.errors import UserError
from core.small_files import INTEGER_LIMIT, parse_json, read_json, read_small
from core.template.builtin import template_source
from core.template.tokenizer import load_tokenizer
from tests.cases import cases
from tests.tui.data_panes import make_tokenizer


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * (1 << 20))
    assert read_small(path, 1 << 20) == b"x" * (1 << 20)
    path.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(OSError, match="larger than 1 MiB"):
        read_small(path, 1 << 20)
    assert read_small("/proc/self/status", 1 << 20).startswith(b"Name:")


def special(directory: Path, kind: str) -> Path:
    """A path that holds no small file: reading it waits for ever, or never ends."""
    path = directory / f"{kind}.jinja"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    return path


@cases(
    ("kind", "what"),
    [
        *(("pipe", "it is a named pipe"), ("device", "it is a device"), ("directory", "Is a directory")),
        *(("missing", "No such file or directory"), ("huge", "it is larger than")),
    ],
)
def test_a_template_that_is_no_file_is_refused_at_once(tmp_path: Path, kind: str, what: str) -> None:
    with pytest.raises(UserError, match=rf"template\.file .*{kind}\.jinja cannot be read: {what}"):
        template_source(str(special(tmp_path, kind)), None)


@cases("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"])
@cases("kind", ["pipe", "device", "huge"])
def test_a_model_whose_files_are_none_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    place = make_tokenizer(tmp_path / "model")
    (place / name).unlink(missing_ok=True)
    special(tmp_path, kind).rename(place / name)
    with pytest.raises(UserError, match=name):
        load_tokenizer(place)


@cases(("text", "said"), [
    ('{"a": [9223372036854775809]}', "more than 64 bits"), ("[-9223372036854775809]", "more than 64 bits"),
    ("1" * 4000, "more than 64 bits"), ("-" + "1" * 100_000, "more than 64 bits"), ("[NaN]", "not finite"),
    ("[-Infinity]", "not finite"), ("[1e999]", "not finite"), ("[" * 100_000, "nested too deeply"),
    (b"\xff\xfe", "decode"), ("{", "Expecting"), ("", "Expecting"),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_json_that_cannot_be_computed_with_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(text)
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=said):
        read_json(tmp_path / "a.json", 1 << 20)


def test_json_within_the_limits_is_read_as_it_is() -> None:
    assert parse_json(f"[{INTEGER_LIMIT}, {-INTEGER_LIMIT}, 1e308, 1e-999, -0.0, true]") == [
        INTEGER_LIMIT, -INTEGER_LIMIT, 1e308, 0.0, 0.0, True,
    ]  # fmt: skip
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    assert parse_json(b'{"loss": Infinity}', finite=False) == {"loss": float("inf")}
