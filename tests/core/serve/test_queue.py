"""The request queue: an engine that hears nothing is replaced, and those who wait behind it are answered."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from core.chat import engine as engine_module
from core.chat.engine import ChatEngine, ModelSpec
from core.chat.request import ChatRequest
from core.chat.session import EngineSession
from core.config.schema import ChatSection
from core.serve.models import ServedModel, SessionHolder
from core.serve.queue import End, Event, Piece, QueuedAnswer, RequestQueue
from tests.core.chat import fake_engine

QUESTION = ChatRequest([{"role": "user", "content": "Count."}], "base")


async def test_a_hung_engine_is_ended_and_the_next_request_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "CANCEL_SECONDS", 0.05)
    (tmp_path / "first").touch()
    command = [sys.executable, str(fake_engine.__file__), f"hung {tmp_path / 'first'}"]
    holder = SessionHolder(
        lambda: EngineSession(ModelSpec("x"), "some model", ChatEngine(command)), lambda _detail, _done, _total: None
    )
    model = ServedModel("some-model", holder, "base", ChatSection(), 0)
    queue, loop = RequestQueue(2), asyncio.get_running_loop()
    try:
        left, waits = (QueuedAnswer(model, [QUESTION], loop) for _ in range(2))
        queue.submit(left, queue.take_place())
        queue.submit(waits, queue.take_place())
        assert await left.events.get() == Piece("One")
        queue.cancel(left)
        events: list[Event] = []
        async with asyncio.timeout(60):
            while not events or isinstance(events[-1], Piece):
                events.append(await waits.events.get())
        assert isinstance(events[-1], End), events
    finally:
        await asyncio.to_thread(queue.close)
        await asyncio.to_thread(holder.close)
