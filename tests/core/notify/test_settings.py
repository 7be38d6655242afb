from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import UserError
from core.notify import NotifySettings, load_notify_settings
from tests.cases import cases


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "localtune").mkdir()
    return tmp_path / "localtune" / "notify.toml"


def test_all_is_off_without_a_file() -> None:
    assert load_notify_settings() == NotifySettings()
    assert not load_notify_settings().sends


def test_settings_are_read(file: Path) -> None:
    file.write_text('command = ["say", "{state}"]\nbell = true\ndesktop = true\n')
    assert load_notify_settings() == NotifySettings(("say", "{state}"), True, True)


@cases(
    "command",
    [
        '["sh", "-c", "notify-me \\"$0\\" \\"$1\\"", "{state}", "{reason}"]',
        '["notify-send", "--app-name=mine", "--", "{state}", "{reason}"]',
        '["notify-send", "-u", "critical", "{run}", "{reason}"]',
        '["ssh", "host", "notify-me", "{reason}"]',
        '["sh", "-c", "notify-me {other} ${LOCALTUNE_REASON}"]',
    ],
)
def test_an_argument_of_its_own_may_stand_for_a_value(file: Path, command: str) -> None:
    file.write_text(f"command = {command}")
    assert load_notify_settings().command == tuple(json.loads(command))


@cases(
    ("text", "said"),
    [
        ('command = "say {state}"', "a list of a program and its arguments"),
        ("bell = 1", "bell must be true or false"),
        ("bel = true", "no setting bel"),
        (
            'command = ["bash", "-c", "echo {reason}"]',
            "{reason} must be an argument of its own; within other text, take",
        ),
        ('command = ["/bin/sh", "-ec", "x {run}"]', "$LOCALTUNE_RUN"),
        ('command = ["curl", "-d", "{run}: {state}", "https://example.org"]', "$LOCALTUNE_RUN"),
        ('command = ["env", "sh", "-c", "{reason}"]', "{reason} cannot be the value of -c, which may run it; take"),
        ('command = ["sh", "-c", "--", "{reason}"]', "value of -c"),
        ('command = ["sh", "-c", "-", "{reason}"]', "value of -c"),
        ('command = ["bash", "-c", "+e", "{reason}"]', "value of +e"),
        ('command = ["pwsh", "-Command", "{state}"]', "value of -Command"),
        ('command = ["perl", "-le", "{reason}"]', "value of -le"),
        ('command = ["curl", "--data", "{reason}", "https://example.org"]', "value of --data"),
        ('command = ["x", "--eval={reason}"]', "argument of its own"),
        ('command = ["ssh", "host", "notify {reason}"]', "argument of its own"),
        ('command = ["{run}"]', "{run} cannot be the program; take"),
        ('command = ["--", "{run}"]', "cannot be the program"),
        ("command = [1]", "a list of a program"),
        ("[", "notify.toml"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_sentence(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=r"notify\.toml") as error:
        load_notify_settings()
    assert said in error.value.message
    assert "\n" not in str(error.value)
