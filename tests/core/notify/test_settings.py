from __future__ import annotations

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
    ("text", "said"),
    [
        ('command = "say {state}"', "a list of a program and its arguments"),
        ("bell = 1", "bell must be true or false"),
        ("bel = true", "no setting bel"),
        ('command = ["bash", "-c", "echo {reason}"]', "LOCALTUNE_REASON"),
        ('command = ["/bin/sh", "-ec", "x {run}"]', "LOCALTUNE_RUN"),
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
