"""The command ``serve``: its output, and its errors before it listens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from core.serve import options
from core.serve.options import KEY_VARIABLE
from tests.core.chat.test_session import add_adapter, add_checkpoint, make_run
from tests.core.commands.conftest import ROOT, CommandLine


@contextlib.contextmanager
def serving(*words: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The command, in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "tui", "serve", *words],
        cwd=ROOT,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(process: subprocess.Popen[str], count: int) -> dict[str, str]:
    """The first lines of its output: a name and a value each."""
    assert process.stdout is not None
    return dict(process.stdout.readline().strip().split(maxsplit=1) for _ in range(count))


def test_it_prints_what_a_program_needs_and_ends_by_ctrl_c() -> None:
    run = make_run("finished")
    add_adapter(run.adapter_path)
    add_checkpoint(run, 40)
    with serving(run.id, f"{run.id}@40", "--port", "0") as process:
        told = lines(process, 3)
        url = told["base"].removeprefix("URL").strip()
        assert told["models"] == f"{run.id}, base, {run.id}@40"
        headers = {"Authorization": f"Bearer {told['key']}"}
        assert httpx2.get(f"{url}/models", headers=headers).status_code == 200
        assert httpx2.get(f"{url}/models", headers={"Authorization": "Bearer x"}).status_code == 401
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert err.split("\n") == ["Ctrl-C ends it.", "The server has ended.", ""]


def test_a_key_of_the_user_is_not_printed_and_a_foreign_address_is_warned_of() -> None:
    run = make_run("finished")
    add_adapter(run.adapter_path)
    everywhere = "0.0.0.0"  # noqa: S104 - the warning is tested
    with serving(run.id, "--port", "0", "--host", everywhere, **{KEY_VARIABLE: "known-to-the-user"}) as process:
        told = lines(process, 3)
        url = told["base"].removeprefix("URL").strip()
        assert told["key"] == "as given"
        headers = {"Authorization": "Bearer known-to-the-user"}
        # Addresses in numbers are known, whichever of the machine they are; names are not.
        for host, code in (({}, 200), ({"Host": "192.168.7.7"}, 200), ({"Host": "evil.example"}, 421)):
            assert httpx2.get(f"{url}/models", headers=headers | host).status_code == code
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert "warning: 0.0.0.0 can be reached from other machines" in err
    assert "known-to-the-user" not in err


def test_what_cannot_be_served_is_refused_before_it_listens(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("failed")
    for words, said in (
        ([run.id], "has neither an adapter nor a whole checkpoint"),
        ([f"{run.id}@7"], "has no checkpoint of step 7"),
        (["no-such-run"], "no-such-run"),
        ([run.id, "--key", "short"], "The key must have at least 8 characters"),
        ([run.id, "--port", "99999"], "is not a port"),
    ):
        cli.refused(said, "serve", *words)
    monkeypatch.setattr(options, "_PACKAGES", ("starlette", "no_such_package"))
    missing = cli.refused("needs no_such_package, which is not installed", "serve", "latest")
    assert "pip install 'localtune-tui[serve]'" in missing.err


def test_json_has_what_is_promised(tmp_path: Path) -> None:
    run = make_run("finished")
    add_adapter(run.adapter_path)
    with serving(str(run.path), "--uds", str(tmp_path / "s"), "--json") as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        promised = {"url": "http://localhost/v1", "models": [run.id, "base"], "pid": process.pid}
        assert told == promised | {"key": told["key"]}
