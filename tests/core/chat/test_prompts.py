"""Files of prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.chat import prompts
from core.chat.prompts import PROMPT_LIMIT, read_prompts
from core.errors import UserError
from tests.cases import cases

REFUSED = yaml.safe_load(Path(__file__).with_name("refused.yaml").read_text(encoding="utf-8"))["prompt"]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes('\ufeff first \r\n\n{"prompt": "not JSON here"}\u2028same line\n'.encode())
    asked = [[user("first")], [user('{"prompt": "not JSON here"}\u2028same line')]]
    assert read_prompts(path) == asked
    system = {"role": "system", "content": "Be brief."}
    assert read_prompts(path, "Be brief.") == [[system, *messages] for messages in asked]


def test_json_lines_have_messages_or_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.JSONL"
    turns = [user("a"), {"role": "assistant", "content": "b"}, user("c")]
    rows = [{"messages": [*turns, {"role": "assistant", "content": "expected"}]}, {"prompt": "one\ntwo"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_prompts(path, "S") == [turns, [{"role": "system", "content": "S"}, user("one\ntwo")]]


@cases(("line", "words"), REFUSED)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert words in caught.value.message
    assert f"{path}, line 2" in caught.value.message


@cases(
    ("content", "words"),
    [(None, "cannot be read"), (b"", "has no prompt"), (b"\n \n", "has no prompt"), (b"\xff", "not UTF-8"),
     (b"a\n" * (PROMPT_LIMIT + 1), f"has {PROMPT_LIMIT + 1} prompts")],
)  # fmt: skip
def test_a_file_that_asks_nothing_or_too_much_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_prompts(path)


def test_a_file_that_has_no_end_is_not_read_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"x" * 64)
    monkeypatch.setattr(prompts, "BYTES_LIMIT", 32)
    with pytest.raises(UserError, match="is larger than"):
        read_prompts(path)


@given(data=st.binary(max_size=300))
def test_whatever_is_in_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    try:
        read = read_prompts(path)
    except UserError:
        return
    assert all(messages[-1]["role"] == "user" for messages in read)
