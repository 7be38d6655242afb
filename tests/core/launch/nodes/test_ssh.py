from __future__ import annotations

import shlex

import pytest

from core.errors import UserError
from core.launch.nodes.ssh import check_host, ssh_command
from tests.cases import cases


@cases("host", ["tower", "me@10.0.0.7", "ssh://me@tower:2222", "fe80::1%eth0", "a-b.example"])
def test_names_that_ssh_takes(host: str) -> None:
    check_host(host)


@cases("host", ["-oProxyCommand=touch /tmp/x", "", "a b", "a;b", "$(b)", "a\nb", "`b`", "--"])
def test_what_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(UserError, match="no name of a machine"):
        ssh_command(host, "core.x")


def test_nothing_is_asked_and_the_paths_are_quoted() -> None:
    command = ssh_command("tower", "core.x", python="/home/o'neil; rm -rf ~/python")
    assert "BatchMode=yes" in command
    assert command[-3:-1] == ["--", "tower"]
    words = shlex.split(command[-1])
    assert words[:3] == ["exec", "sh", "-c"]
    assert words[7:] == ["core.x"]
    assert words[5] == "/home/o'neil; rm -rf ~/python"
