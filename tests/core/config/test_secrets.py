"""Values of secret variables in a configuration: refused, so that no run carries them into its directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config.document import ConfigDocument, load_config
from core.errors import UserError
from core.redact import secret_variable
from tests.cases import cases

SECRET = "plain horse 4711"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration, beside a variable with a secret that does not look like one."""
    monkeypatch.setenv("MY_API_KEY", SECRET)
    path = tmp_path / "x.toml"
    path.write_text('[data]\ntrain = "rows.jsonl"\n')
    return path


@cases(
    ("name", "value"),
    [
        ("tracking.name", f'"run-{SECRET}"'),
        ("tracking.project", f'"{SECRET}"'),
        ("chat.system", f'"The password is {SECRET}."'),
        ("data.eval", f'["a.jsonl", "{SECRET}.jsonl"]'),
        ("data.columns", f'{{user = "{SECRET}"}}'),
        ("model.base", f'"hf://owner/{SECRET}"'),
    ],
)
def test_it_is_refused_with_its_key_and_its_variable(name: str, value: str, path: Path) -> None:
    section, _, key = name.partition(".")
    lines = {"data": 'train = "rows.jsonl"'}
    lines[section] = "\n".join(filter(None, [lines.get(section), f"{key} = {value}"]))
    path.write_text("\n".join(f"[{head}]\n{body}" for head, body in lines.items()))
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert f"{name} holds the value of the variable MY_API_KEY." in caught.value.message
    assert f"{path}, line " in caught.value.message
    assert SECRET not in str(caught.value)
    assert name in ConfigDocument.load(path).problems()


def test_it_is_refused_on_the_command_line_too(path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_config(path, [f"tracking.name=run-{SECRET}"])
    assert caught.value.message == "--set tracking.name: tracking.name holds the value of the variable MY_API_KEY."


def test_a_file_that_is_there_may_be_called_so(path: Path) -> None:
    (path.parent / SECRET).touch()
    assert str(load_config(path, [f"data.train={SECRET}"]).data.train).endswith(SECRET)


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
def test_what_counts_as_a_secret(variable: str, value: str, text: str, is_one: bool) -> None:
    assert secret_variable(text, {variable: value}) == (variable if is_one else None)
