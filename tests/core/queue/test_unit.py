from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from core.errors import UserError
from core.queue.unit import UNIT, unit_commands, unit_path, unit_text, write_unit


def test_special_characters_in_the_home_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / 'a b%h "c" $HOME'))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    text = unit_text()
    assert f'Environment="LOCALTUNE_HOME={tmp_path}/a b%%h \\"c\\" $HOME"' in text
    assert "KillMode=process" in text, "the end of the unit must not end a run"
    path = write_unit()
    assert path == tmp_path / "config" / "systemd" / "user" / UNIT == unit_path()
    assert path.read_text() == text
    assert unit_commands()[-1].startswith("loginctl enable-linger ")


def test_a_home_with_a_line_break_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", f"{tmp_path}/a\nExecStart=/bin/true")
    with pytest.raises(UserError, match="line break"):
        unit_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="not run: no systemd here")
def test_systemd_takes_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / 'a b%h "c" $HOME'))
    path = write_unit()
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
