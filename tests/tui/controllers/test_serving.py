"""The server from the app: started, shown, copied from, ended; real helper processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from textual.pilot import Pilot

from core.serve.job import serve_job
from core.serve.options import ServerAddress
from tests.tui.harness import pane_of, press, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.screens.serving import ServeScreen


@pytest.fixture
def app() -> LocaltuneApp:
    app = LocaltuneApp()
    app.serving.make_job = partial(serve_job, port=0)
    return app


def ended_run(home: Path, *, has_adapter: bool = True) -> ScriptedRun:
    run = ScriptedRun(home, "20261123-090000-first", start=1_700_000_000.0).train_to(60)
    run.end("finished", "all steps done")
    if has_adapter:
        run.run.adapter_path.mkdir(exist_ok=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (run.run.adapter_path / name).write_text("{}")
    return run


@asynccontextmanager
async def serving(app: LocaltuneApp) -> AsyncIterator[Pilot[Any]]:
    """The app, with the key pressed that serves the run."""
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for(pilot, lambda: pane_of(app, "runs") is not None)
        await press(pilot, "5", until="20261123")
        await pilot.press("W")
        yield pilot


def address_of(app: LocaltuneApp) -> ServerAddress:
    """The address of the server."""
    view = app.state.serving
    assert view is not None
    assert view.address is not None
    return view.address


def listed(app: LocaltuneApp) -> int:
    """The status of the server's answer to the shown key."""
    address = address_of(app)
    return httpx2.get(f"{address.url}/models", headers={"Authorization": f"Bearer {address.key}"}).status_code


async def test_a_key_serves_and_another_ends_it(home: Path, app: LocaltuneApp, monkeypatch: pytest.MonkeyPatch) -> None:
    ended_run(home)
    copied: list[str] = []
    monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
    async with serving(app) as pilot:
        await wait_for(pilot, lambda: "is served to programs on this machine" in screen_text(app))
        view, address = app.state.serving, address_of(app)
        shown = screen_text(app).replace("│", " ")
        assert address.url in shown
        assert address.key in shown
        assert "20261123-090000-first" in shown
        assert listed(app) == 200
        await press(pilot, "question_mark", until=("Help · Serve", "  x stop", "  esc keep running"))
        await press(pilot, "escape", until=lambda: isinstance(app.screen, ServeScreen))
        for key in "uymc":
            await pilot.press(key)
        lines = f"export OPENAI_BASE_URL={address.url}\nexport OPENAI_API_KEY={address.key}"
        assert copied == [address.url, address.key, "20261123-090000-first", lines]
        assert lines.splitlines() == [line.strip() for line in shown.splitlines() if "export OPENAI" in line]
        # It stays on while other things are done, and the header says so.
        await press(pilot, "escape", until="● serving")
        assert listed(app) == 200
        await press(pilot, "W", until=lambda: isinstance(app.screen, ServeScreen))
        assert app.state.serving is view, "no second one is started"
        await press(pilot, "x", until=lambda: app.state.serving is None and "serving" not in screen_text(app))
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(address.url)


async def test_it_ends_with_the_app(home: Path, app: LocaltuneApp) -> None:
    ended_run(home)
    async with serving(app) as pilot:
        await wait_for(pilot, lambda: app.state.serving is not None and app.state.serving.address is not None)
        address = address_of(app)
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(address.url)


async def test_a_run_without_a_result_is_refused_in_a_sentence(home: Path, app: LocaltuneApp) -> None:
    ended_run(home, has_adapter=False)
    async with serving(app) as pilot:
        await wait_for(pilot, lambda: "is not served" in screen_text(app))
        assert "has neither an adapter nor a" in screen_text(app)
        await press(pilot, "escape", until=lambda: app.state.serving is None)
        assert "serving" not in screen_text(app)
