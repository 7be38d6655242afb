"""The request queue: one answer is generated at a time; others wait for their turn, or are refused."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

from core.chat.request import ChatRequest, QuestionError
from core.errors import UserError
from core.serve.asgi import ApiError, refusal_of, unexpected
from core.serve.models import ServedModel


@dataclass(frozen=True)
class Piece:
    """A piece of an answer, as the model wrote it."""

    text: str
    index: int = 0
    """Number of the answer, from 0."""
    scores: tuple[dict[str, Any], ...] = ()
    """The log-probabilities of its tokens; see :class:`core.worker.generate.scores.TokenScores`."""


@dataclass(frozen=True)
class End:
    """The end of an answer."""

    finish: str
    """``stop``, ``length`` or ``cancelled``."""
    prompt_tokens: int
    tokens: int
    source: str
    """The weights that answered: ``base``, ``adapter`` or ``step-N``."""
    index: int = 0
    """Number of the answer."""


@dataclass(frozen=True)
class Failure:
    """An answer that failed, possibly after some pieces."""

    error: ApiError


Event: TypeAlias = "Piece | End | Failure"


class QueuedAnswer:
    """The answers of a request, which wait for their turn or are generated; their events arrive in :attr:`events`.

    Events wait there for their reader: a slow reader holds up nobody else.
    """

    def __init__(self, model: ServedModel, questions: Sequence[ChatRequest], loop: asyncio.AbstractEventLoop) -> None:
        self.model = model
        self.questions = questions
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.is_cancelled = threading.Event()
        self._loop = loop

    def tell(self, event: Event) -> None:
        """Add an event, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended, and nobody reads
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class RequestQueue:
    """Generates answers, one after another, in a thread.

    Args:
        room: How many requests may wait beside the one whose turn it is.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._taken = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="answers")
        self._guard = threading.Lock()
        self._current: QueuedAnswer | None = None
        self._futures: dict[QueuedAnswer, Future[None]] = {}

    def take_place(self) -> Callable[[], None]:
        """Take a place in the queue, for a request that has arrived whole and before it is read.

        Returns:
            A function that gives it back; further calls do nothing.

        Raises:
            ApiError: If there is none.
        """
        if self._taken > self._room:
            raise ApiError(
                429, f"{self._taken} requests wait already. Try again when one is done.", code="too_many_requests"
            )
        self._taken += 1
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._taken -= 1

        return give_back

    def submit(self, answer: QueuedAnswer, give_back: Callable[[], None]) -> None:
        """Have an answer generated when its turn comes; its place is given back when it is done."""
        loop = asyncio.get_running_loop()
        future = self._thread.submit(self._generate, answer)
        self._futures[answer] = future

        def done() -> None:
            self._futures.pop(answer, None)
            give_back()

        def tell(_: Future[None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done)

        future.add_done_callback(tell)

    def cancel(self, answer: QueuedAnswer) -> None:
        """Cancel an answer, or take it from the queue; for a finished answer, nothing happens."""
        answer.is_cancelled.set()
        future = self._futures.get(answer)
        if future is None or future.cancel():
            return
        # Under the guard, so that the cancellation does not hit the next answer.
        with self._guard:
            if self._current is answer:
                answer.model.holder.cancel()

    def cancel_all(self) -> None:
        """Break off all answers at the end of the server, with an error to their clients."""
        for answer in list(self._futures):
            answer.tell(Failure(ApiError(503, "The server is ending.", code="server_ending")))
            self.cancel(answer)

    def close(self) -> None:
        """Cancel everything; blocks until the thread has ended."""
        self.cancel_all()
        self._thread.shutdown(wait=True, cancel_futures=True)

    # In the thread.

    def _generate(self, answer: QueuedAnswer) -> None:
        with self._guard:
            self._current = answer
        try:
            if not answer.is_cancelled.is_set():
                self._answer(answer)
        except Exception as error:  # costs this answer, not the server
            if not isinstance(error, QuestionError):
                answer.model.holder.note_failure()
            answer.tell(Failure(refusal_of(error) if isinstance(error, UserError) else unexpected(error)))
            if not isinstance(error, UserError):
                traceback.print_exc()
        finally:
            with self._guard:
                self._current = None

    def _answer(self, answer: QueuedAnswer) -> None:
        session = answer.model.holder.open()
        for index, question in enumerate(answer.questions):
            if answer.is_cancelled.is_set():
                return  # the model took so long to load that nobody waits any more
            self._answer_one(answer, index, session.stream(question))

    @staticmethod
    def _answer_one(answer: QueuedAnswer, index: int, messages: Iterable[dict[str, Any]]) -> None:
        end: dict[str, Any] | None = None
        scores: list[dict[str, Any]] = []
        for message in messages:
            if answer.is_cancelled.is_set():
                break
            if "token" in message:
                answer.tell(Piece(str(message["token"]), index, tuple(scores)))
                scores.clear()
            elif "logprobs" in message:
                scores += message["logprobs"]
            else:
                end = message
        if answer.is_cancelled.is_set():
            return
        if end is None or end.get("finish") == "cancelled":
            raise UserError("The model broke off its answer.", "Ask again.")
        prompt_tokens, tokens = (
            count if isinstance(count := end.get(name), int) and not isinstance(count, bool) else 0
            for name in ("prompt_tokens", "tokens")
        )
        if scores:
            answer.tell(Piece("", index, tuple(scores)))
        answer.tell(End(str(end.get("finish", "stop")), prompt_tokens, tokens, str(end.get("source", "")), index))
